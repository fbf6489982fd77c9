"""Attacks on order by key: workers and the broker are killed while tasks with keys run, and fail at random.

    make chaos ARGS="--target keys --kills 50 --changes 100000 --keys 1000 --seed 7"
    make chaos ARGS="--target keys --kills 50 --changes 100000 --keys 1000 --broker rabbitmq"

The tasks note when each run begins and ends. `key_notes.py` holds these notes against the order of the commits.

Another broker takes the place of `RedisSide`: see `Side`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING, Final, Protocol

from kombu import Exchange

from cdc_tasks.broker.rabbitmq.partitions import partition_queues
from cdc_tasks.routing.router import BinlogRouter
from harness.embedded_servers import ValkeyServer
from harness.machine_servers import RabbitMQServer
from harness.waiting import at_most, wait_until
from harness.worker import Worker
from listener.publish.kombu.publisher import KombuPublisher
from tests.acceptance.key_notes import Notes, faults_in, second_runs
from tests.support.publishing import SOURCE, celery_app, change, fire, position, redis_publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cdc_tasks.routing.router import Call, Parked

__all__ = ["SIDES", "KeyAttacks", "RabbitMQSide", "RedisSide", "Side"]

_QUEUES = ("cdc_bulk", "cdc_cache")
_BATCH: Final = 500  # changes in a batch of the publisher
_AHEAD: Final = 0.1  # the part of all changes that waits at the broker, at most
_PROCESSES: Final = 2  # of a worker
_PARTITIONS: Final = 8  # on RabbitMQ
_LOOK_EVERY: Final = 0.1  # seconds
_STANDS_STILL: Final = 60  # seconds without any note, on an idle machine: then nothing more is to be expected


class Side(Protocol):
    """A broker that can be killed, and a publisher to it."""

    queues: Sequence[str]  # of the tasks
    repeats: bool  # what is on its way when the broker is killed may be published twice

    @property
    def environment(self) -> dict[str, str]:
        """The workers' settings for this broker."""

    def publish(self, fired: Sequence[Call | Parked], last: int) -> None:
        """Make the broker hold these tasks, however often it is killed meanwhile; `last`: the last change's number."""

    def kill(self, seconds: float) -> None:
        """SIGKILL to the broker, which comes back after this time with what it has confirmed."""


class RedisSide:
    """Valkey, which is on the disk before it answers, and the listener's own publisher."""

    queues = _QUEUES
    repeats = False

    def __init__(self, stack: ExitStack) -> None:
        arguments = ["--appendfsync", "always"]
        self._server = stack.enter_context(ValkeyServer(append_only=True, arguments=arguments))
        cache = stack.enter_context(ValkeyServer())
        self._publisher = stack.enter_context(redis_publisher(self._server.url))
        self.environment = {"CELERY_BROKER_URL": self._server.url, "CACHE_URL": cache.url}

    def publish(self, fired: Sequence[Call | Parked], last: int) -> None:
        self._publisher.publish(fired, checkpoint=position(last))

    def kill(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.start()


class RabbitMQSide:
    """RabbitMQ with the quorum queues for tasks with a key, and the listener's own publisher."""

    queues = ("cdc_keyed",)
    repeats = True

    def __init__(self, stack: ExitStack) -> None:
        self._server = stack.enter_context(RabbitMQServer())
        cache = stack.enter_context(ValkeyServer())
        exchange = Exchange("cdc_tasks", type="topic")
        queues = partition_queues(self.queues[0], _PARTITIONS, exchange)
        app = celery_app(self._server.url, task_queues=queues, task_default_exchange=exchange.name)
        self._publisher = KombuPublisher(app, cache.url, name="keys")
        stack.callback(self._publisher.close)
        self._publisher.attach(SOURCE)
        self.environment = {
            "CELERY_BROKER_URL": self._server.url,
            "CACHE_URL": cache.url,
            "CDC_KEY_PARTITIONS": str(_PARTITIONS),
        }

    def publish(self, fired: Sequence[Call | Parked], last: int) -> None:
        self._publisher.publish(fired, checkpoint=position(last))

    def kill(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.start()


SIDES: Final[dict[str, Callable[[ExitStack], Side]]] = {"redis": RedisSide, "rabbitmq": RabbitMQSide}


class KeyAttacks(AbstractContextManager["KeyAttacks"]):
    """Some workers of two processes, a broker, and changes over some keys."""

    def __init__(
        self,
        *,
        seed: int,
        changes: int,
        keys: int,
        workers: int = 4,
        side: Callable[[ExitStack], Side] = RedisSide,
        has_keys: bool = True,
        notes: Path | None = None,
        said: Callable[[str], None] = print,
    ) -> None:
        """Without `has_keys` the tasks have no order: then faults have to be found.

        `notes`: a file that keeps what was noted, to be looked at when something is wrong.
        """
        self._dice = random.Random(seed)
        self._stack = ExitStack()
        self._said = said
        self._expected = {number: f"k{self._dice.randrange(keys)}" for number in range(1, changes + 1)}
        self._router = _router(has_keys=has_keys)
        directory = self._stack.enter_context(TemporaryDirectory())
        path = (notes or Path(directory) / "notes").resolve()
        self._notes = Notes(path)
        self._stack.callback(self._notes.close)
        self._side = side(self._stack)
        self._environment = {
            **self._side.environment,
            "KEYED_NOTES": str(path),
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "CDC_TASK_MODULES": "tests.support.tasks.keyed",
            "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
        }
        self._threads = self._stack.enter_context(ThreadPoolExecutor())
        self._published = 0
        self._may_repeat: set[int] = set()
        self._is_over = Event()

        # All start at the same time; the first to be ready begins.
        self._workers = [self._threads.submit(self._start_worker) for _ in range(workers)]

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        for worker in self._workers:
            with suppress(AssertionError):  # it did not start
                worker.result().__exit__()
        self._stack.close()

    def run(self, *, worker_kills: int, broker_kills: int) -> list[str]:
        """Attack while tasks run, wait until all are done, and return what is wrong."""
        begun = time.monotonic()
        for worker in self._workers:
            worker.result()
        publishing = self._threads.submit(self._publish)
        attacks = [self._kill_worker] * worker_kills + [self._kill_broker] * broker_kills
        self._dice.shuffle(attacks)
        for number, attack in enumerate(attacks, start=1):
            if not self._wait_for(len(self._expected) * number // (len(attacks) + 1)):
                break
            time.sleep(self._dice.uniform(0, 0.1))
            what = attack()
            self._said(
                f"{number}: {what} killed; {self._published} published, {len(self._notes.done)} done, "
                f"{time.monotonic() - begun:.0f} s"
            )
        self._wait_for(len(self._expected))
        self._is_over.set()
        publishing.result()
        self._notes.read()
        self._sum_up(time.monotonic() - begun)
        return faults_in(self._notes.all, self._expected, self._may_repeat)

    def _sum_up(self, seconds: float) -> None:
        whats = [note.what for note in self._notes.all]
        self._said(
            f"{len(self._notes.done)} of {len(self._expected)} changes over {len(set(self._expected.values()))} "
            f"keys took effect in {seconds:.0f} s; {whats.count('begin')} runs began, {whats.count('fail')} failed, "
            f"{whats.count('begin') - whats.count('fail') - whats.count('end')} were killed; "
            f"{second_runs(self._notes.all)} began although their task had ended, "
            f"{len(self._may_repeat)} tasks may have been published twice"
        )

    # --- publishing ---

    def _publish(self) -> None:
        ahead = max(_BATCH, int(len(self._expected) * _AHEAD))
        numbers = list(self._expected)
        for start in range(0, len(numbers), _BATCH):
            while self._published - len(self._notes.done) > ahead and not self._is_over.wait(_LOOK_EVERY):
                pass
            if self._is_over.is_set():
                return
            batch = numbers[start : start + _BATCH]
            changes = [change(number, account=self._expected[number]) for number in batch]
            self._on_its_way = batch
            self._side.publish(fire(self._router, changes), batch[-1])
            self._published = batch[-1]
            self._on_its_way = []

    _on_its_way: Sequence[int] = ()  # the batch that is being published

    # --- attacks: each returns what was killed ---

    def _kill_worker(self) -> str:
        number = self._dice.choice(self._ready())
        worker = self._workers[number].result()
        if self._dice.random() < 0.2:
            self._notes.add("process")
            os.kill(self._dice.choice(_children(worker.process.pid)), signal.SIGKILL)
            return "process of a worker"
        self._notes.add("worker")
        worker.kill()
        worker.__exit__()
        self._workers[number] = self._threads.submit(self._start_worker)
        return "worker"

    def _ready(self) -> list[int]:
        """Return the numbers of the workers that run; wait if there is none."""

        def running() -> list[int]:
            return [number for number, each in enumerate(self._workers) if each.done()]

        return wait_until(running, timeout=60, what="a worker to be ready")

    def _kill_broker(self) -> str:
        before = self._on_its_way
        self._notes.add("broker")
        self._side.kill(self._dice.choice([0, 0.5, 2]))
        if self._side.repeats:
            self._may_repeat.update(before, self._on_its_way)
        return "broker"

    def _start_worker(self) -> Worker:
        worker = Worker(self._environment, "-Q", ",".join(self._side.queues), concurrency=_PROCESSES)
        return worker.__enter__()

    # --- waiting ---

    def _wait_for(self, done: int) -> bool:
        """Wait until that many tasks have ended; return False if for a long time nothing has happened."""
        moved = time.monotonic()
        while len(self._notes.done) < done:
            time.sleep(_LOOK_EVERY)
            if self._notes.read():
                moved = time.monotonic()
            elif time.monotonic() - moved > at_most(_STANDS_STILL):
                return False
        return True


def _children(pid: int) -> list[int]:
    """Return the ids of the processes that a worker runs its tasks in."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _router(*, has_keys: bool) -> BinlogRouter:
    """Return routes to two queues whose tasks share their keys."""
    router = BinlogRouter()
    keyed = {"key": "account", "group": "accounts"} if has_keys else {}
    for rest, queue in enumerate(_QUEUES):
        router.register(
            "public",
            "tickets",
            "insert",
            "keyed.run",
            queue=queue,
            when=lambda change, rest=rest: change.row["id"] % len(_QUEUES) == rest,
            args=["account", "id"],
            **keyed,  # type: ignore[arg-type]  # both are texts
        )
    return router
