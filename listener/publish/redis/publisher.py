"""Tasks to Redis or Valkey: a batch and its checkpoint are one atomic step, so every change is there exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain
from time import monotonic

from celery import Celery

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Parked, Route
from listener.core.publisher import CheckpointMovedError, StoppedError
from listener.core.retry import Retry
from listener.core.source import Saved
from listener.publish.batching import Batcher
from listener.publish.checkpoint import Checkpoint
from listener.publish.parked import log_parked, parked_key, store_parked
from listener.publish.queue_limit import QueueLimit, pause_key
from listener.publish.redis.connection import Command, RedisConnection, too_large
from listener.publish.redis.envelope import Envelope, Envelopes

__all__ = ["RedisPublisher"]

_LOOK_EVERY = 0.2  # seconds between two looks at a queue that is too long
_CHECK_EVERY = 1.0  # seconds without a write, until the publisher looks whether the broker still has its data
_OVERHEAD = 10_000  # bytes in a message beside the arguments, which are in base64
_AT_ONCE = 50  # messages in a command: the broker reads one while we make the next


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
        self._retry = Retry("broker")
        self._checkpoint = Checkpoint(self._redis, self._retry, name=name, durability=durability)
        prefix = self._redis.prefixed(f"cdc:{name}")
        self._parked_key = parked_key(prefix)
        self._deferred_key = f"{prefix}:held"
        self._batcher = Batcher(self._deferred_key, interval=coalesce_interval, longest=batch_wait)
        self._limit = QueueLimit(
            max_queue, self._redis, pause_key(prefix), self._retry, look_every=_LOOK_EVERY
        )
        self._checked_at = 0.0
        self._is_consistent = False  # what is deferred goes with the checkpoint that Redis has, or will have
        self._parked: list[Parked] = []  # with the batch in flight
        self._refused: list[Parked] = []  # in the same batch: what is too large for Redis
        self._envelopes = Envelopes(app)

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds; see `Publisher.read_checkpoint`."""
        self._end_flight()
        return self._checkpoint.read()

    def attach(self, source: str) -> str | None:
        """Get ready to publish; see `Publisher.attach`."""
        self._end_flight()
        self._envelopes.forget()  # a restarted broker may have lost its queue bindings
        return self._retry.call(lambda: self._attach(source))

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, the parked changes and the checkpoint, in one atomic step."""
        self._is_consistent = False
        tasks, parked, saving = self._batcher.batch(fired)
        self.flush()
        if tasks or parked or saving or checkpoint != self._checkpoint.confirmed or notes is not None:
            self._start(tasks, saving, checkpoint, as_of, notes, parked=parked)
            self._parked = parked
        else:
            self._look_now_and_then()
        self._is_consistent = True
        return self._checkpoint.confirmed if pipelined else self.flush()

    def flush(self) -> str | None:
        """Wait for the batch in flight; see `Publisher.flush`."""
        parked, self._parked = self._parked, []
        try:
            lengths = self._checkpoint.flush()
        except BaseException:
            self._is_consistent, self._refused = False, []
            raise
        refused, self._refused = self._refused, []
        if refused:
            self._redis.close()  # the next connection asks whether the limit has been raised
        log_parked([*parked, *refused])
        self._limit.wait_for_room(max(lengths, default=0), self._longest_queue)
        return self._checkpoint.confirmed

    def stop(self) -> None:
        """Make a call that waits raise StoppedError soon."""
        self._retry.stop()

    def close(self) -> None:
        """Release the broker; after `stop`, first hand over what is deferred, if the broker is there."""
        if self._retry.is_stopped and self._is_consistent:
            with suppress(CDCError, StoppedError):  # it is saved, and goes out at the next start
                self._hand_over()
        self._envelopes.close()
        self._redis.close()

    def _hand_over(self) -> None:
        position = self.flush()
        tasks, _, saving = self._batcher.release_all()
        if tasks and position is not None:
            self._start(tasks, saving, position)
            self.flush()

    def _end_flight(self) -> None:
        """Wait for the batch in flight; what another listener did to the checkpoint is read next."""
        with suppress(CheckpointMovedError):
            self.flush()

    def _start(
        self,
        tasks: list[Call],
        saving: list[Command],
        checkpoint: str,
        as_of: datetime | None = None,
        notes: str | None = None,
        *,
        parked: Sequence[Parked] = (),
    ) -> None:
        envelopes = self._envelopes_of(tasks)
        self._checked_at = monotonic()  # the step looks too
        self._checkpoint.start(
            lambda: chain(self._pushes(tasks, envelopes), saving, self._parkings(parked)),
            checkpoint,
            as_of,
            queries=self._length_queries(),
            notes=notes,
        )

    def _pushes(self, tasks: Sequence[Call], envelopes: Sequence[Envelope]) -> Iterator[Command]:
        """Yield what puts the tasks into their queues; add those that Redis would refuse to `_refused`."""
        self._refused = []
        return _pushes(tasks, envelopes, self._redis.max_bytes, self._refused)

    def _parkings(self, parked: Sequence[Parked]) -> Iterator[Command]:
        """Yield what parks them, and what `_pushes` has refused before."""
        yield from store_parked(self._parked_key, [*parked, *self._refused], max_bytes=self._redis.max_bytes)

    def _look_now_and_then(self) -> None:
        """Find out that the broker lost its data, although the database is idle: its tasks wait to be mended."""
        if monotonic() - self._checked_at >= _CHECK_EVERY:
            self._checked_at = monotonic()
            self._checkpoint.look()

    def _length_queries(self) -> list[Command]:
        if self._limit.max_queue is None:
            return []
        return [("LLEN", key) for key in self._envelopes.queues]

    def _longest_queue(self) -> int:
        return int(max(self._checkpoint.ask(self._length_queries())))

    def _attach(self, source: str) -> str | None:
        """Read the checkpoint, and what a former listener deferred, on the connection that watches it."""
        position = self._checkpoint.attach(source)
        ask = self._redis.ask
        (deferred,) = ask([("HVALS", self._deferred_key)])
        self._batcher.max_bytes = (self._redis.max_bytes - _OVERHEAD) * 3 // 4
        self._batcher.restore(deferred, lambda key: ask([("LRANGE", key, "0", "-1")])[0])
        self._is_consistent = True
        return position

    def _envelopes_of(self, tasks: Iterable[Call]) -> list[Envelope]:
        """Return each task's envelope. They are made before anything is written, because that talks to the broker."""
        envelopes = []
        last: tuple[Route, tuple[str, str, str]] | None = None
        for task in tasks:
            route, kind = task.route, task.change.kind
            if last is None or route is not last[0] or kind is not last[1]:  # most are like the one before
                envelope, last = self._envelope(route, kind), (route, kind)
            envelopes.append(envelope)
        return envelopes

    def _envelope(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        made = self._envelopes.made.get((route.sent_as, kind))
        return made or self._retry.call(partial(self._envelopes.of, route, kind))


def _pushes(
    tasks: Sequence[Call], envelopes: Sequence[Envelope], max_bytes: int, refused: list[Parked]
) -> Iterator[Command]:
    """Yield the commands that put the tasks' messages where Celery would. They are made while they are being sent.

    A message of more than `max_bytes` goes to `refused`: Redis would close the connection.
    """
    expiries: dict[Command, None] = {}
    for start in range(0, len(tasks), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        queues: dict[str, list[bytes]] = defaultdict(list)
        for (route, change, arguments, kwargs), (keys, more, render) in zip(
            tasks[part], envelopes[part], strict=True
        ):
            message = render(arguments, kwargs, *change.stamp)
            if len(message) > max_bytes:
                error = too_large(len(message), max_bytes)
                refused.append(Parked(route, change, error, arguments, kwargs))
                continue
            for key in keys:
                queues[key].append(message)
            if more:
                expiries.update(dict.fromkeys(more))
        for key, messages in queues.items():
            yield "LPUSH", key, *messages
    yield from expiries
