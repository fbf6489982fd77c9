"""Tasks into Redis or Valkey: a batch and its checkpoint are one atomic step, so every change is there exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain
from time import monotonic

import structlog
from celery import Celery

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Parked, Route
from listener.core.publisher import CheckpointMovedError, StoppedError
from listener.core.retry import Patience
from listener.publish.batching import Gatherer
from listener.publish.checkpoint import Checkpoint
from listener.publish.parked import parked_key, say_parked, store_parked
from listener.publish.pause import PauseNote, pause_key
from listener.publish.redis.connection import Command, RedisConnection, too_large
from listener.publish.redis.envelope import Envelope, Envelopes

__all__ = ["RedisPublisher"]

log = structlog.get_logger()

_LOOK_EVERY = 0.2  # seconds between two looks at a queue that is too long
_CHECK_EVERY = 1.0  # seconds in which nothing was written, until we look whether the broker still has it all
_AROUND = 10_000  # bytes in a message beside the arguments, which are in base64
_AT_ONCE = 50  # messages in a command: the broker reads one while the next is made


class RedisPublisher:
    """Publishes to the Redis that Celery's own broker settings describe."""

    def __init__(
        self,
        app: Celery,
        *,
        name: str,
        durability: str = "memory",
        coalesce_interval: float = 0.5,
        batch_wait: float = 1.0,
        max_queue: int | None = None,
    ) -> None:
        """Take the settings of the same names, without `CDC_`; times are in seconds."""
        self._redis = RedisConnection.of_broker(app)
        self._patience = Patience("broker")
        self._checkpoint = Checkpoint(self._redis, self._patience, name=name, durability=durability)
        self._parked_key = parked_key(self._redis.prefixed(f"cdc:{name}"))
        self._pause_key = pause_key(self._redis.prefixed(f"cdc:{name}"))
        self._held_key = self._redis.prefixed(f"cdc:{name}:held")
        self._gatherer = Gatherer(self._held_key, interval=coalesce_interval, longest=batch_wait)
        self._max_queue = max_queue
        self._checked_at = 0.0
        self._is_settled = False  # what is held back goes with the checkpoint that Redis has, or is to have
        self._parked: list[Parked] = []  # with what was published ahead
        self._refused: list[Parked] = []  # in the same step: what is too large for Redis
        self._envelopes = Envelopes(app)

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; see `Publisher.checkpoint`."""
        with suppress(CheckpointMovedError):  # it is read anew
            self.settle()
        self._envelopes.forget()  # a broker that was emptied does not know the queues any more
        return self._patience.until_done(lambda: self._read(source))

    @property
    def notes(self) -> str | None:
        return self._checkpoint.notes

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        ahead: bool = False,
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, the parked changes, and the checkpoint, in one atomic step."""
        self._is_settled = False
        tasks, parked, keeping = self._gatherer.gather(fired)
        self.settle()
        if tasks or parked or keeping or checkpoint != self._checkpoint.held or notes is not None:
            self._start(tasks, keeping, checkpoint, as_of, notes, parked=parked)
            self._parked = parked
        else:
            self._look_now_and_then()
        self._is_settled = True
        return self._checkpoint.held if ahead else self.settle()

    def settle(self) -> str | None:
        """Wait for what was published ahead; see `Publisher.settle`."""
        parked, self._parked = self._parked, []
        try:
            lengths = self._checkpoint.settle()
        except BaseException:
            self._is_settled, self._refused = False, []
            raise
        refused, self._refused = self._refused, []
        if refused:
            self._redis.close()  # the next connection asks whether the limit has been raised
        say_parked([*parked, *refused])
        self._wait_for_room(lengths)
        return self._checkpoint.held

    def stop(self) -> None:
        """Make a waiting `publish` raise StoppedError soon."""
        self._patience.stop()

    def close(self) -> None:
        """Let go of the broker; after `stop`, hand over before what is held back, if that is to be had at once."""
        if self._patience.is_stopped and self._is_settled:
            with suppress(CDCError, StoppedError):  # it is kept, and goes out at the next start
                self._hand_over()
        self._envelopes.close()
        self._redis.close()

    def _hand_over(self) -> None:
        position = self.settle()
        tasks, _, keeping = self._gatherer.gather_all()
        if tasks and position is not None:
            self._start(tasks, keeping, position)
            self.settle()

    def _start(
        self,
        tasks: list[Call],
        keeping: list[Command],
        checkpoint: str,
        as_of: datetime | None = None,
        notes: str | None = None,
        *,
        parked: Sequence[Parked] = (),
    ) -> None:
        envelopes = self._envelopes_of(tasks)
        self._checked_at = monotonic()  # the step tells too
        self._checkpoint.start(
            lambda: chain(self._pushes(tasks, envelopes), keeping, self._parkings(parked)),
            checkpoint,
            as_of,
            asking=self._asking_lengths(),
            notes=notes,
        )

    def _pushes(self, tasks: Sequence[Call], envelopes: Sequence[Envelope]) -> Iterator[Command]:
        """Yield what puts the tasks into their queues; notes those that Redis would refuse as parked."""
        self._refused = []
        return _pushes(tasks, envelopes, self._redis.longest, self._refused)

    def _parkings(self, parked: Sequence[Parked]) -> Iterator[Command]:
        """Yield what parks them, and what `_pushes` has noted before."""
        yield from store_parked(self._parked_key, [*parked, *self._refused], longest=self._redis.longest)

    def _look_now_and_then(self) -> None:
        """Notice a broker that lost its data although the database is quiet, and tasks of its wait to be mended."""
        if monotonic() - self._checked_at >= _CHECK_EVERY:
            self._checked_at = monotonic()
            self._checkpoint.look()

    def _asking_lengths(self) -> list[Command]:
        if self._max_queue is None:
            return []
        return [("LLEN", key) for key in self._envelopes.queues]

    def _wait_for_room(self, lengths: Sequence[int]) -> None:
        """Pause while a queue is longer than CDC_MAX_QUEUE: what waits in the database's log waits on its disk."""
        limit = self._max_queue
        if limit is None or max(lengths, default=0) <= limit:
            return
        log.warning("paused", longest_queue=max(lengths), cdc_max_queue=limit)
        note, longest = PauseNote(self._redis, self._pause_key, limit), max(lengths)
        while longest > limit:
            note.renew(longest)
            self._patience.sleep(_LOOK_EVERY)
            longest = max(self._patience.until_done(lambda: self._checkpoint.ask(self._asking_lengths())))
        note.remove()
        log.info("resumed")

    def _read(self, source: str | None) -> str | None:
        """Read the checkpoint, and what a former listener held back, on the connection that watches it."""
        position = self._checkpoint.read(source)
        ask = self._redis.ask
        (held,) = ask([("HVALS", self._held_key)])
        self._gatherer.most_arguments = (self._redis.longest - _AROUND) * 3 // 4
        self._gatherer.restore(held, lambda key: ask([("LRANGE", key, "0", "-1")])[0])
        self._is_settled = True
        return position

    def _envelopes_of(self, tasks: Iterable[Call]) -> list[Envelope]:
        """Return each task's, made before anything is written: that talks to the broker."""
        envelopes = []
        last: tuple[Route, tuple[str, str, str]] | None = None
        for route, change, _ in tasks:
            kind = change.kind
            if last is None or route is not last[0] or kind is not last[1]:  # most are like the one before
                envelope, last = self._envelope(route, kind), (route, kind)
            envelopes.append(envelope)
        return envelopes

    def _envelope(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        made = self._envelopes.made.get((route.key, route.queue, kind))
        return made or self._patience.until_done(partial(self._envelopes.of, route, kind))


def _pushes(
    tasks: Sequence[Call], envelopes: Sequence[Envelope], longest: int, refused: list[Parked]
) -> Iterator[Command]:
    """Yield the commands that put the tasks' messages where Celery would: made while they are being sent.

    A message of more than `longest` bytes goes to `refused`: Redis would hang up.
    """
    expiries: dict[Command, None] = {}
    for start in range(0, len(tasks), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        queues: dict[str, list[bytes]] = defaultdict(list)
        for (route, change, arguments), (keys, more, seal) in zip(tasks[part], envelopes[part], strict=True):
            message = seal(arguments, *change.stamp)
            if len(message) > longest:
                error = too_large(len(message), longest)
                refused.append(Parked(route, change, error, arguments))
                continue
            for key in keys:
                queues[key].append(message)
            if more:
                expiries.update(dict.fromkeys(more))
        for key, messages in queues.items():
            yield "LPUSH", key, *messages
    yield from expiries
