"""Attacks on order by key: workers and the broker are killed while tasks with keys run, and fail at random.

    make chaos ARGS="--target keys --kills 50 --changes 100000 --keys 1000 --seed 7"

The tasks note when each run begins and ends, in a Redis of its own, which nobody kills. The checker reads these notes,
and knows nothing of how the order comes about.

Another broker takes the place of `RedisSide`: see `Side`.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import redis

from cdc_tasks.routing.router import BinlogRouter
from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.publishing import change, fire, position, redis_publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cdc_tasks.routing.router import Call, Parked

__all__ = ["KeyAttacks", "Note", "RedisSide", "Side", "faults_in"]

_QUEUES = ("cdc_bulk", "cdc_cache")
_PORTION = 500  # changes in a batch of the publisher
_LOG = "runs"


class Side(Protocol):
    """A broker that can be killed, and a publisher to it."""

    @property
    def environment(self) -> dict[str, str]:
        """The workers' settings for this broker."""

    def publish(self, fired: Sequence[Call | Parked], last: int) -> None:
        """Make the broker hold these tasks, however often it is killed meanwhile; `last`: the last change's number."""

    def kill(self, seconds: float) -> None:
        """SIGKILL to the broker, which comes back after this time with what it has confirmed."""


class RedisSide:
    """Valkey, which is on the disk before it answers, and the listener's own publisher."""

    def __init__(self, stack: ExitStack) -> None:
        self._server = stack.enter_context(
            ValkeyServer(append_only=True, arguments=["--appendfsync", "always"])
        )
        self._publisher = stack.enter_context(redis_publisher(self._server.url))
        self.environment = {"CELERY_BROKER_URL": self._server.url}

    def publish(self, fired: Sequence[Call | Parked], last: int) -> None:
        self._publisher.publish(fired, checkpoint=position(last))

    def kill(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.start()


class Note(NamedTuple):
    """What a run of a task has noted."""

    what: str  # begin, fail, end
    key: str
    number: int
    run: str  # differs for each try of each delivery

    @classmethod
    def parse(cls, line: bytes) -> Self:
        what, key, number, run = line.decode().split()
        return cls(what, key, int(number), run)


def faults_in(notes: Iterable[Note], expected: dict[int, str]) -> list[str]:
    """Return what is wrong: order and overlaps of each key, and effects that are missing.

    `expected`: the key of each number, which grow in the order of the commits. A run without an end was killed; nothing
    may come from it after another run of its key has begun.
    """
    of_key: dict[str, list[Note]] = defaultdict(list)
    done = set()
    for note in notes:
        of_key[note.key].append(note)
        if note.what == "end":
            done.add(note.number)
    found = [f"{number} of {key} had no effect" for number, key in expected.items() if number not in done]
    for key, its in of_key.items():
        found += _faults_of_key(key, its)
    return found


def _faults_of_key(key: str, notes: Sequence[Note]) -> list[str]:
    found, last, run, ended = [], 0, "", set[int]()
    for note in notes:
        if note.what == "begin":
            if note.number < last:
                found.append(f"{key}: {note.number} began after {last}")
            elif note.number > last and last and last not in ended:
                found.append(f"{key}: {note.number} began before {last} was done")
            last, run = max(last, note.number), note.run
        elif note.run != run:
            found.append(f"{key}: {note.number} was still running when the next run had begun")
        if note.what == "end":
            ended.add(note.number)
    return found


class KeyAttacks(AbstractContextManager["KeyAttacks"]):
    """Some workers, a broker, and changes over some keys."""

    def __init__(
        self,
        *,
        seed: int,
        changes: int,
        keys: int,
        workers: int = 4,
        side: Callable[[ExitStack], Side] = RedisSide,
        said: Callable[[str], None] = print,
    ) -> None:
        """Each worker has two processes."""
        self._dice = random.Random(seed)
        self._stack = ExitStack()
        self._said = said
        self._expected = {number: f"k{self._dice.randrange(keys)}" for number in range(1, changes + 1)}
        self._log = self._stack.enter_context(ValkeyServer())
        self._side = side(self._stack)
        self._environment = {
            **self._side.environment,
            "CACHE_URL": self._log.url,
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "CDC_TASK_MODULES": "tests.support.tasks.keyed",
            "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
        }
        self._workers = [self._start_worker() for _ in range(workers)]
        self._published = 0

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.__exit__()
        self._stack.close()

    def run(self, *, worker_kills: int, broker_kills: int) -> list[str]:
        """Attack while tasks run, wait until all are done, and return what is wrong."""
        attacks = ["worker"] * worker_kills + ["broker"] * broker_kills
        self._dice.shuffle(attacks)
        router = _router()
        portion = max(1, len(self._expected) // (len(attacks) + 1))
        for attack in attacks:
            self._publish(router, self._published + portion)
            self._wait_for_progress()
            self._kill_worker() if attack == "worker" else self._kill_broker()
            self._said(f"{attack} killed; {self._published} published, {self._done()} done")
        self._publish(router, len(self._expected))
        wait_until(self._is_done, timeout=600 + len(self._expected) / 50, what="all tasks to end")
        return faults_in(self._notes(), self._expected)

    def _publish(self, router: BinlogRouter, until: int) -> None:
        for first in range(self._published + 1, min(until, len(self._expected)) + 1, _PORTION):
            last = min(first + _PORTION - 1, until, len(self._expected))
            batch = [change(number, account=self._expected[number]) for number in range(first, last + 1)]
            self._side.publish(fire(router, batch), last)
            self._published = last

    def _kill_worker(self) -> None:
        number = self._dice.randrange(len(self._workers))
        self._workers[number].kill()
        self._workers[number].__exit__()
        self._workers[number] = self._start_worker()

    def _kill_broker(self) -> None:
        self._side.kill(self._dice.choice([0, 0.5, 2]))

    def _start_worker(self) -> Worker:
        return Worker(self._environment, "-Q", ",".join(_QUEUES)).__enter__()

    def _wait_for_progress(self) -> None:
        before = self._client().llen(_LOG)
        wait_until(
            lambda: self._is_done() or self._client().llen(_LOG) > before + 20, timeout=120, what="some tasks"
        )
        time.sleep(self._dice.uniform(0, 0.3))

    def _is_done(self) -> bool:
        return self._done() >= self._published

    def _done(self) -> int:
        return int(self._client().scard("done"))

    def _notes(self) -> list[Note]:
        client, found = self._client(), list[Note]()
        for start in range(0, client.llen(_LOG), 10_000):
            found += map(Note.parse, client.lrange(_LOG, start, start + 9_999))
        return found

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self._log.url, socket_timeout=30)


def _router() -> BinlogRouter:
    """Return routes to two queues whose tasks share their keys."""
    router = BinlogRouter()
    for rest, queue in enumerate(_QUEUES):
        router.register(
            "public",
            "tickets",
            "insert",
            "keyed.run",
            queue=queue,
            when=lambda change, rest=rest: change.row["id"] % len(_QUEUES) == rest,
            args=["account", "id"],
            key="account",
            group="accounts",
        )
    return router
