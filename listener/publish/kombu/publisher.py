"""Tasks to RabbitMQ and to any other broker that kombu supports: at least once, with equal task ids.

The broker gets a batch first, then the checkpoint goes to CACHE_URL's Redis. After a crash between the two the
listener sends the batch again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from celery import Celery

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import GROW, PAUSE, Call, Origin, Parked, Route
from listener.core.publisher import (
    BrokerAwayError,
    BrokerError,
    CheckpointMovedError,
    MessageTooLargeError,
    StoppedError,
)
from listener.core.retry import Retry
from listener.core.source import Saved
from listener.core.wakeup import Wakeup
from listener.publish.batching import batch_together
from listener.publish.checkpoint import Checkpoint
from listener.publish.kombu.sender import Delivery, KombuSender, UnroutableError
from listener.publish.kombu.set_aside import SetAsideTasks
from listener.publish.parked import log_parked, parked_key, store_parked, without_unfit
from listener.publish.queue_limit import Load, QueueLimit, pause_key
from listener.publish.redis.connection import Command, RedisConnection
from listener.publish.redis.set_aside import set_aside_key
from listener.publish.spans import Spans

__all__ = ["KombuPublisher"]

_OVERHEAD = 1_000  # bytes in a message's body in addition to the arguments
_LOOK_EVERY = 0.5  # seconds between two checks of a queue that is too long


class _Flight(NamedTuple):
    """A batch that the broker has not confirmed yet."""

    tasks: int
    delivery: Delivery
    parked: list[Parked]
    checkpoint: str
    as_of: datetime | None
    notes: str | None
    beside: Sequence[Command]  # messages set aside with it, or leaving their list
    before: Callable[[], None] | None  # called before the checkpoint moves


class KombuPublisher:
    """Publishes to the broker of Celery's settings through kombu; fulfils `listener.core.publisher.Publisher`."""

    def __init__(
        self,
        app: Celery,
        cache_url: str,
        *,
        name: str,
        max_queue: int | None = None,
        max_set_aside: int | None = None,
        max_parked: int | None = None,
        spans: Spans | None = None,
    ) -> None:
        """Keep the checkpoint under `name`, which is CDC_NAME, in the Redis of `cache_url`."""
        self._app = app
        self._wakeup = Wakeup()  # of both waits, for the broker and for the cache
        self._retry = Retry("broker", wakeup=self._wakeup)
        self._spans = spans
        self._sender = KombuSender(app, self._retry, spans)
        self._redis = RedisConnection.of_cache(cache_url)
        self._retry_cache = Retry("cache", wakeup=self._wakeup)
        self._checkpoint = Checkpoint(self._redis, self._retry_cache, name=name)
        self._parked_key = parked_key(f"cdc:{name}")
        self._limit = QueueLimit(
            max_queue, self._redis, pause_key(f"cdc:{name}"), self._retry, look_every=_LOOK_EVERY
        )
        self._flight: _Flight | None = None
        self._beside = SetAsideTasks(set_aside_key(f"cdc:{name}"), self._sender.queue_of)
        self._max_set_aside = max_set_aside
        self._max_parked = max_parked
        self._policies: dict[str, set[str]] = defaultdict(
            set
        )  # queue -> its routes' policies for a full queue

    @property
    def retries(self) -> Sequence[Retry]:
        """See `Publisher.retries`."""
        return self._retry, self._retry_cache

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds; see `Publisher.read_checkpoint`."""
        self._end_flight()
        return self._checkpoint.read()

    def attach(self, source: str) -> str | None:
        """Prepare to publish; see `Publisher.attach`."""
        self._end_flight()
        position = self._checkpoint.attach(source)
        self._beside.restore(self._ask)
        return position

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,
        notes: str | None = None,
        also: Sequence[Command] = (),
        before: Callable[[], None] | None = None,
    ) -> str | None:
        """Store these tasks in the broker, then the parked changes and the checkpoint in Redis."""
        limit = self._sender.limit
        tasks, parked = batch_together(fired, max_bytes=None if limit is None else limit - _OVERHEAD)
        self.flush()
        if not all(each.route.id for each in tasks):
            tasks, unfit = without_unfit(tasks, self._check_place)
            parked = [*parked, *unfit]
        tasks, beside = self._with_those_beside(tasks)
        if also:
            beside = [*beside, *also]
        if not tasks:
            self._sender.keep_alive()
        self._flight = _Flight(len(tasks), Delivery(tasks), parked, checkpoint, as_of, notes, beside, before)
        with suppress(BrokerAwayError, MessageTooLargeError):  # `flush` detects it again
            self._sender.start(self._flight.delivery)
        return self._checkpoint.confirmed if pipelined else self.flush()

    def flush(self) -> str | None:
        """Wait for the batch in flight; see `Publisher.flush`."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._finish(flight)
            if self._spans is not None:
                self._spans.end()
        return self._checkpoint.confirmed

    def _end_flight(self) -> None:
        """Wait for the batch in flight; another listener's checkpoint is read afterwards."""
        with suppress(CheckpointMovedError):
            self.flush()

    def _finish(self, flight: _Flight) -> None:
        """Store the tasks in the broker, then the parked changes and the checkpoint in Redis."""
        tasks, parked = flight.tasks, [*flight.parked, *self._deliver(flight.delivery)]
        if flight.before is not None:
            flight.before()
        is_due = tasks or parked or flight.beside
        if is_due or flight.checkpoint != self._checkpoint.confirmed or flight.notes is not None:
            self._checkpoint.start(
                lambda: [
                    *store_parked(self._parked_key, parked, max_bytes=self._redis.max_bytes),
                    *flight.beside,
                ],
                flight.checkpoint,
                flight.as_of,
                notes=flight.notes,
            )
            self._checkpoint.flush()
        log_parked(parked)
        if parked:
            self._limit.wait_for_room(self._parked_load(), self._parked_load)
        if (tasks or self._beside.is_used) and self._limit.max_queue is not None:
            self._limit.wait_for_room(self._retry.call(self._load), self._load)

    def _parked_load(self) -> Load:
        (parked,) = self._ask([("HLEN", self._parked_key)])
        return Load(parked, self._max_parked, "CDC_MAX_PARKED")

    def _load(self) -> Load:
        """Check the queues; return the load that makes the listener wait."""
        most, lengths = self._limit.max_queue, self._sender.lengths()
        self._beside.full = {queue for queue, length in lengths.items() if most is not None and length > most}
        pausing = (length for queue, length in lengths.items() if PAUSE in self._policies[queue])
        load = Load(max(pausing, default=0), most)
        if load.is_too_much or self._beside.longest <= (self._max_set_aside or self._beside.longest):
            return load
        self._move()
        return Load(self._beside.longest, self._max_set_aside, "CDC_MAX_SET_ASIDE")

    def _move(self) -> None:
        """Move tasks from their lists to the queues while the stream waits."""
        position = self._checkpoint.confirmed
        released, removals = self._beside.release(self._ask)
        if position is not None and released:
            self._deliver(Delivery(released))
            self._checkpoint.start(lambda: removals, position)
            self._checkpoint.flush()

    def _with_those_beside(self, tasks: Sequence[Call]) -> tuple[list[Call], list[Command]]:
        """Return the tasks that the broker gets now, and the changes to the lists of tasks set aside."""
        for each in tasks if self._limit.max_queue is not None else ():
            self._policies[self._sender.queue_of(each)].add(each.route.on_full)
        if not self._beside.is_used:
            return list(tasks), []
        released, removals = self._beside.release(self._ask)
        now, kept = self._beside.split(tasks)
        return [*released, *now], [*kept, *removals]

    def _ask(self, commands: list[Command]) -> list[Any]:
        return self._retry.call(lambda: self._checkpoint.ask(commands))

    def room(self, routes: Sequence[Route], kind: tuple[str, str, str], most: int) -> int:
        """Return how many tasks of each route a backfill may send now; see `Publisher.room`."""
        if self._limit.max_queue is None:
            return most
        self.flush()
        origin = Origin(kind, (b"", b""))
        queues = {
            self._sender.queue_of(Call(route, origin, b"")) for route in routes if route.on_full != GROW
        }
        lengths = self._retry.call(self._sender.lengths)
        longest = max((lengths.get(queue, 0) for queue in queues), default=0)
        return max(0, min(most, self._limit.max_queue // 2 - longest))

    def pause(self, routes: Collection[str]) -> None:
        """Set aside only the tasks of these routes; see `Publisher.pause`."""
        self.flush()
        self._beside.pause(routes)

    def drop_set_aside(self, route: str) -> int:
        """Drop the tasks of a paused route that were set aside; see `Publisher.drop_set_aside`."""
        position = self.flush()
        count, commands = self._beside.drop(route)
        if commands and position is not None:
            self._checkpoint.start(lambda: commands, position)
            self._checkpoint.flush()
        return count

    def _deliver(self, delivery: Delivery) -> list[Parked]:
        """Store the tasks in the broker; return those whose messages it never accepts."""
        parked: list[Parked] = []
        while delivery.outstanding:
            try:
                self._retry.call(lambda: self._sender.finish(delivery))
            except UnroutableError as error:
                enqueued = delivery.remove(partial(_is_enqueued, error.ids))
                if not enqueued:
                    raise
                parked += _refused(enqueued, error)
            except MessageTooLargeError as error:
                too_large = delivery.remove(partial(self._is_larger, error.limit))
                if not too_large:
                    raise BrokerError(error.message, hint=error.hint, code=error.code) from error
                parked += _refused(too_large, error)
        return parked

    def _check_place(self, task: Call) -> None:
        self._retry.call(lambda: self._sender.check_place(task))

    def _is_larger(self, limit: int, task: Call) -> bool:
        return self._sender.body_size(task) > limit

    def stop(self) -> None:
        """Make a waiting call raise StoppedError soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Release broker and Redis; after `stop`, first wait for the batch in flight if the broker is available."""
        if self._retry.is_stopped:
            with suppress(CDCError, StoppedError):  # the next start would publish it again
                self.flush()
        self._sender.close()
        self._redis.close()


def _is_enqueued(ids: Collection[str], task: Call) -> bool:
    """Return whether a transaction enqueued the task, and it has one of these ids."""
    return not task.route.id and task.id in ids


def _refused(tasks: Iterable[Call], error: Exception) -> Iterator[Parked]:
    """Yield them as parked changes."""
    return (Parked(*each[:2], error, each.arguments, each.kwargs, each.key) for each in tasks)
