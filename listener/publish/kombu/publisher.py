"""Tasks to RabbitMQ and to any other broker that kombu supports: at least once, with equal task ids.

The broker gets a batch first, then the checkpoint goes to CACHE_URL's Redis. After a crash between the two the
listener sends the batch again.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import NamedTuple

from celery import Celery

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Parked
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
from listener.publish.kombu.sender import Delivery, KombuSender
from listener.publish.parked import log_parked, parked_key, store_parked
from listener.publish.queue_limit import Load, QueueLimit, pause_key
from listener.publish.redis.connection import RedisConnection

__all__ = ["KombuPublisher"]

_OVERHEAD = 1_000  # bytes in a message's body beside the arguments
_LOOK_EVERY = 0.5  # seconds between two looks at a queue that is too long


class _Flight(NamedTuple):
    """A batch that the broker does not hold yet."""

    tasks: int
    delivery: Delivery
    parked: list[Parked]
    checkpoint: str
    as_of: datetime | None
    notes: str | None


class KombuPublisher:
    """Publishes to the broker of Celery's settings through kombu; fulfils `listener.core.publisher.Publisher`."""

    def __init__(self, app: Celery, cache_url: str, *, name: str, max_queue: int | None = None) -> None:
        """Keep the checkpoint under `name`, which is CDC_NAME, in the Redis of `cache_url`."""
        self._app = app
        self._wakeup = Wakeup()  # of both waits, for the broker and for the cache
        self._retry = Retry("broker", wakeup=self._wakeup)
        self._sender = KombuSender(app, self._retry)
        self._redis = RedisConnection.of_cache(cache_url)
        self._checkpoint = Checkpoint(self._redis, Retry("cache", wakeup=self._wakeup), name=name)
        self._parked_key = parked_key(f"cdc:{name}")
        self._limit = QueueLimit(
            max_queue, self._redis, pause_key(f"cdc:{name}"), self._retry, look_every=_LOOK_EVERY
        )
        self._flight: _Flight | None = None

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds; see `Publisher.read_checkpoint`."""
        self._end_flight()
        return self._checkpoint.read()

    def attach(self, source: str) -> str | None:
        """Get ready to publish; see `Publisher.attach`."""
        self._end_flight()
        return self._checkpoint.attach(source)

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, and then Redis the parked changes and the checkpoint."""
        limit = self._sender.limit
        tasks, parked = batch_together(fired, max_bytes=None if limit is None else limit - _OVERHEAD)
        self.flush()
        if not tasks:
            self._sender.keep_alive()
        self._flight = _Flight(len(tasks), Delivery(tasks), parked, checkpoint, as_of, notes)
        with suppress(BrokerAwayError, MessageTooLargeError):  # `flush` finds out again
            self._sender.start(self._flight.delivery)
        return self._checkpoint.confirmed if pipelined else self.flush()

    def flush(self) -> str | None:
        """Wait for the batch in flight; see `Publisher.flush`."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._finish(flight)
        return self._checkpoint.confirmed

    def _end_flight(self) -> None:
        """Wait for the batch in flight; what another listener did to the checkpoint is read next."""
        with suppress(CheckpointMovedError):
            self.flush()

    def _finish(self, flight: _Flight) -> None:
        """Make the broker hold the tasks, and then Redis the parked changes and the checkpoint."""
        tasks, parked = flight.tasks, [*flight.parked, *self._deliver(flight.delivery)]
        if tasks or parked or flight.checkpoint != self._checkpoint.confirmed or flight.notes is not None:
            self._checkpoint.start(
                lambda: store_parked(self._parked_key, parked, max_bytes=self._redis.max_bytes),
                flight.checkpoint,
                flight.as_of,
                notes=flight.notes,
            )
            self._checkpoint.flush()
        log_parked(parked)
        if tasks and self._limit.max_queue is not None:
            self._limit.wait_for_room(self._retry.call(self._load), self._load)

    def _load(self) -> Load:
        return Load(self._sender.longest_queue(), self._limit.max_queue)

    def _deliver(self, delivery: Delivery) -> list[Parked]:
        """Make the broker hold the tasks; return those whose messages it will never take."""
        parked: list[Parked] = []
        while delivery.outstanding:
            try:
                self._retry.call(lambda: self._sender.finish(delivery))
            except MessageTooLargeError as error:
                too_large = delivery.remove(partial(self._is_larger, error.limit))
                if not too_large:
                    raise BrokerError(error.message, hint=error.hint, code=error.code) from error
                parked += [Parked(*each[:2], error, each.arguments, each.kwargs) for each in too_large]
        return parked

    def _is_larger(self, limit: int, task: Call) -> bool:
        return self._sender.body_size(task) > limit

    def stop(self) -> None:
        """Make a call that waits raise StoppedError soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Release broker and Redis; after `stop`, first wait for the batch in flight, if the broker is there."""
        if self._retry.is_stopped:
            with suppress(CDCError, StoppedError):  # the next start would publish it again
                self.flush()
        self._sender.close()
        self._redis.close()
