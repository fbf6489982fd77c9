"""The listener with RabbitMQ, compared with a publisher that repeatedly writes the same bytes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import amqp

from benchmarks.contenders import Contender, Counting, Ours, Run
from benchmarks.postgres_stage import PostgresStage
from benchmarks.routes import QUEUE
from harness.listener_process import ListenerProcess, mortal
from harness.machine_servers import RabbitMQServer

__all__ = ["CONTENDERS", "RabbitMQStage"]

_CHECKOUT = Path(__file__).resolve().parents[1]


class RabbitMQStage(PostgresStage):
    """PostgreSQL, a RabbitMQ with its own defaults, and the Valkey for the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.rabbitmq = RabbitMQServer()

    def _open(self, stack: ExitStack) -> None:
        super()._open(stack)
        stack.enter_context(self.rabbitmq)
        self._connection = stack.enter_context(amqp.Connection(host=f"127.0.0.1:{self.rabbitmq.port}"))

    def listener(self, routes: str = "", **more: str) -> ListenerProcess:
        """Start the listener, with RabbitMQ as its broker."""
        return super().listener(routes, CELERY_BROKER_URL=self.rabbitmq.url, **more)

    def queued(self) -> int:
        """Return the number of tasks in the queue, which the listener makes."""
        with suppress(amqp.exceptions.NotFound), self._connection.channel() as channel:  # type: ignore[attr-defined]  # the stubs lack it
            return int(channel.queue_declare(QUEUE, passive=True).message_count)
        return 0

    def purge(self) -> None:
        """Empty the queue."""
        with suppress(amqp.exceptions.NotFound), self._connection.channel() as channel:  # type: ignore[attr-defined]  # the same
            channel.queue_purge(QUEUE)


class _OursOnRabbitMQ(Ours[RabbitMQStage]):
    def skip_the_rest(self, stage: RabbitMQStage) -> None:
        stage.purge()


class _Pipelined(Contender[RabbitMQStage]):
    """One message, created once; confirms are only counted."""

    name = "pipelined publisher"

    def prepare(self, stage: RabbitMQStage) -> None:
        """Do nothing: it creates its own queue."""

    def start(self, stage: RabbitMQStage) -> Run:
        program = [sys.executable, "-m", "benchmarks.pipelined_publisher", str(stage.rabbitmq.port)]
        return Counting(subprocess.Popen(mortal(program), cwd=_CHECKOUT, stdout=subprocess.PIPE, text=True))

    def skip_the_rest(self, stage: RabbitMQStage) -> None:
        """Do nothing: its queue ends with it."""


CONTENDERS: tuple[Contender[RabbitMQStage], ...] = (_Pipelined(), _OursOnRabbitMQ())
