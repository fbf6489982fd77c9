"""What a publisher promises: it hands tasks to a broker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Parked, Route
from listener.core.source import Saved

if TYPE_CHECKING:  # which imports this module
    from listener.core.retry import Retry

__all__ = [
    "BrokerAwayError",
    "BrokerError",
    "CheckpointMovedError",
    "MessageTooLargeError",
    "Publisher",
    "StoppedError",
]


class BrokerError(CDCError):
    """The listener cannot use the broker as it is; a person has to mend it."""


class BrokerAwayError(CDCError):
    """The broker cannot take anything now; waiting may help."""


class MessageTooLargeError(CDCError):
    """The broker will never take a message of this size; other messages pass."""

    def __init__(self, message: str, *, limit: int, hint: str | None = None) -> None:
        """`limit`: how many bytes the broker takes in one message."""
        super().__init__(message, hint=hint)
        self.limit = limit


class CheckpointMovedError(CDCError):
    """The broker's checkpoint is not the one that we left; the listener has to read again from there."""


class StoppedError(Exception):
    """The listener was stopped while it waited for the broker; nothing was acknowledged."""


class Publisher(Protocol):
    """Hands tasks to the broker and keeps the checkpoint.

                      attach()                  publish(pipelined=True)
      DETACHED ─────────────────► CONFIRMED ───────────────────────────► IN FLIGHT
         ▲                        │  ▲   ▲                              │  │   │ publish(): waits for the batch
         │                        └──┘   └──────────── flush() ─────────┘  │   │ in flight, then sends its own
         │                       publish()                                 │   └─► IN FLIGHT
         └───────────── CheckpointMovedError, or the source is lost ───────┘

    Confirmed

    - A batch is confirmed when the broker holds its tasks, as durably as CDC_DURABILITY asks, and the checkpoint is
      its position. `publish` and `flush` return the last confirmed position; only that is acknowledged.
    - On Redis, tasks, parked changes and checkpoint are one atomic step: a batch is there as a whole, once. On other
      brokers the tasks come first: after a crash between the two the listener publishes the batch again.
    - Tasks are published in the order in which they were fired.
    - A task that is published again has the id that it had.

    Pipelined

    - Without `pipelined`, `publish` returns when the batch is confirmed.
    - With it, `publish` may return while the batch is in flight. Up to one batch is in flight: the next call of
      `publish`, `flush`, `read_checkpoint` or `attach` waits for it.
    - An error of a batch in flight comes out of the call that waits for it. Then the batch is not confirmed.
      `read_checkpoint` and `attach` do not raise CheckpointMovedError: they read the checkpoint again.

    Deferred

    - What a route coalesces or batches may be deferred. It is saved together with the checkpoint, and released by a
      later `publish`, also one without tasks. So the caller calls `publish` at least every IDLE_INTERVAL.
    - On Redis that call also finds out that the broker lost its data; on RabbitMQ it answers and sends heartbeats.

    Errors

    - A publisher waits for a broker that is away, full or slow, without a limit, and goes on by itself.
    - It raises BrokerError or another CDCError only if waiting cannot help, CheckpointMovedError if another listener
      took over or the broker lost its data, and StoppedError if `stop` ends a wait.
    - A message that is too large for the broker is parked, like a change that a route could not take.
    """

    @property
    def retries(self) -> Sequence[Retry]:
        """Its waits for servers that are away or full, for the metrics: another thread may read them."""

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds, and the source's notes; None before the first.

        It waits for the batch in flight, so that the answer is the newest. It changes nothing, here or at the broker.
        """

    def attach(self, source: str) -> str | None:
        """Get ready to publish the changes of `source`, and return the position after which they begin.

        Call it before the first `publish`, and again after each CheckpointMovedError and each loss of the source.
        It takes over what a former listener deferred. From here on no other listener can write the checkpoint
        without this one noticing.

        Raises BrokerError if the checkpoint is that of another database.
        """

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,
        notes: str | None = None,
        also: Sequence[tuple[str | bytes, ...]] = (),
        before: Callable[[], None] | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, the parked changes and the checkpoint; return the confirmed position.

        `as_of` is when the last change was committed; the checkpoint carries it for `status`, which shows the lag.
        `notes` replace those that were kept with the checkpoint, in the same step; None leaves them. `also` are more
        Redis commands of that step, for the Redis that has the checkpoint, whose keys have its prefix. `before` is
        called before the checkpoint moves, perhaps more than once; the step waits for it.
        """

    def room(self, routes: Sequence[Route], kind: tuple[str, str, str], most: int) -> int:
        """Return how many tasks of each route a backfill may send now: up to `most`, and 0 while one has to wait.

        It fills a queue up to half of CDC_MAX_QUEUE: live changes have the other half, and never wait for it. `kind` is
        that of the changes. Waits for the batch in flight. Raises what `flush` raises.
        """

    def flush(self) -> str | None:
        """Wait for the batch in flight; return the confirmed position."""

    def pause(self, routes: Collection[str]) -> None:
        """From the next batch on, keep the tasks of these routes (`Route.id`) beside their queues, in order.

        They are saved with the checkpoint. Those of a route that is not named any more go to their queues, in order,
        before its new ones. `attach` does not change which routes are paused.
        """

    def drop_set_aside(self, route: str) -> int:
        """Drop the tasks of a paused route that are kept beside their queues; return how many there were."""

    def stop(self) -> None:
        """Make a call that waits raise StoppedError soon. May be called from a signal handler.

        A batch that need not wait is still published.
        """

    def close(self) -> None:
        """Release the broker; after `stop`, first hand over what is deferred, if the broker is there.

        Safe to call twice, and before `attach`.
        """
