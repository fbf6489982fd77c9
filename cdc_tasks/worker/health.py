"""The worker's health check: a task goes through the broker and the worker's pool, and answers."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from celery import signals
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from cdc_tasks import cache
from cdc_tasks.broker.queues import queue_name
from cdc_tasks.broker.redis.wake_up import NO_WAKE_UP
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import NO_PARTS, current_app, parts_of
from cdc_tasks.words import counted
from cdc_tasks.worker import parked_counts, waiting_counts

if TYPE_CHECKING:
    import celery

__all__ = ["ANSWER", "Health", "NotWellError", "answer_health", "check", "own_worker"]

ANSWER: Final = "cdc_tasks.answer_health"  # the name of the task

_EXPIRES = 60  # seconds until RabbitMQ deletes the queue of a worker that does not exist


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The result of a health check."""

    worker: str
    milliseconds: int  # from sending the task to receiving its answer
    dead_letters: int
    parked: int  # changes that failed in a route
    waiting: int  # messages that wait in Redis until they are due


class NotWellError(CDCError):
    """No worker answered."""


def answer_health(self: celery.Task[Any, Any], question: str) -> None:
    """Answer a health check."""
    with cache.errors_translated(), cache.client().pipeline() as pipeline:
        pipeline.rpush(_answer_key(question), self.request.hostname or "")
        pipeline.expire(_answer_key(question), 60)
        pipeline.execute()


def check(worker: str | None, *, timeout: float) -> Health:
    """Query a worker by name (None: any) and wait for its answer. Raises NotWellError or CacheAwayError."""
    began = time.monotonic()
    question = uuid4().hex
    _ask(worker, question, timeout)
    answered_by = _wait(question, began + timeout)
    if answered_by is None:
        raise _no_answer(worker, timeout)
    milliseconds = round((time.monotonic() - began) * 1000)
    return Health(
        worker=answered_by,
        milliseconds=milliseconds,
        dead_letters=dead_letters.count(),
        parked=sum(parked_counts.counts().values()),
        waiting=sum(waiting_counts.counts().values()),
    )


def own_worker() -> str:
    """Return the default name of a worker on this machine or in this container."""
    return f"celery@{socket.gethostname()}"


@signals.celeryd_after_setup.connect
def _listen_to_questions(sender: str, instance: Any, **_: Any) -> None:
    """Give each worker its own queue, whatever its `-Q`, so that no other worker answers for it."""
    if (parts_of(instance.app) or NO_PARTS).health:
        instance.app.amqp.queues.select_add(_queue(instance.app, sender))


def _queue(app: celery.Celery, worker: str) -> Queue:
    """Return a worker's queue for health checks, on the exchange of its other queues if they share one."""
    name = queue_name(f"health.{worker}")
    other = next(iter(app.amqp.queues.values()))
    shared = other.exchange.type == "topic"
    exchange = other.exchange if shared else Exchange(name, type="direct")
    # RabbitMQ deletes it with its worker. It is not exclusive: after an undetected broken connection, its worker could
    # not use an exclusive queue again until RabbitMQ detects it too.
    arguments = {"x-queue-type": "classic"} if shared else None
    # On Redis an answer may take a few seconds, which saves a connection of each idle worker.
    consumer_arguments = None if shared else {NO_WAKE_UP: True}
    return Queue(
        name,
        exchange,
        routing_key=name.replace(".", ":"),  # one word of a topic, whatever the worker's name is
        expires=_EXPIRES,
        auto_delete=shared,
        queue_arguments=arguments,
        consumer_arguments=consumer_arguments,
    )


def _ask(worker: str | None, question: str, timeout: float) -> None:
    app = current_app()
    where: Any = {} if worker is None else {"queue": _queue(app, worker)}
    try:
        app.send_task(ANSWER, (question,), expires=timeout, retry=False, ignore_result=True, **where)
    except OperationalError as error:
        raise NotWellError(
            f"The broker did not accept a task: {error}",
            hint="is it running, and is CELERY_BROKER_URL right? For details: python -m listener check",
        ) from error


def _wait(question: str, deadline: float) -> str | None:
    while (left := deadline - time.monotonic()) > 0:
        with cache.errors_translated():
            found: Any = cache.client().blpop([_answer_key(question)], timeout=max(min(left, 2), 0.1))
        if found:
            return str(found[1].decode())
    return None


def _no_answer(worker: str | None, timeout: float) -> NotWellError:
    if worker is None:
        return NotWellError(
            f"No worker has answered for {counted(timeout, 'second')}.",
            hint="start one: celery -A cdc_tasks worker. Running workers are busy, or hang: "
            "celery -A cdc_tasks inspect active",
        )
    return NotWellError(
        f"{worker} has not answered for {counted(timeout, 'second')}.",
        hint=f"is that its name? celery -A cdc_tasks status. What is it doing? celery -A cdc_tasks inspect active "
        f"-d {worker}. If it hangs, restart it: its tasks are delivered again",
    )


def _answer_key(question: str) -> str:
    return f"cdc:health:{question}"
