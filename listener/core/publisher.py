"""The contract of publishers, which send tasks to a broker."""

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
    """The listener cannot use the broker; a person has to fix it."""


class BrokerAwayError(CDCError):
    """The broker cannot accept messages now; waiting may help."""


class MessageTooLargeError(CDCError):
    """The broker never accepts a message of this size; other messages are not affected."""

    def __init__(self, message: str, *, limit: int, hint: str | None = None) -> None:
        """`limit`: the maximum size of a message in bytes."""
        super().__init__(message, hint=hint)
        self.limit = limit


class CheckpointMovedError(CDCError):
    """The broker's checkpoint is not the one last written; the listener has to read again from there."""


class StoppedError(Exception):
    """The listener was stopped while it waited for the broker; nothing was acknowledged."""


class Publisher(Protocol):
    """Sends tasks to the broker and keeps the checkpoint.

                      attach()                  publish(pipelined=True)
      DETACHED ─────────────────► CONFIRMED ───────────────────────────► IN FLIGHT
         ▲                        │  ▲   ▲                              │  │   │ publish(): waits for the batch
         │                        └──┘   └──────────── flush() ─────────┘  │   │ in flight, then sends its own
         │                       publish()                                 │   └─► IN FLIGHT
         └───────────── CheckpointMovedError, or the source is lost ───────┘

    Confirmed

    - A batch is confirmed when the broker holds its tasks with the durability of CDC_DURABILITY, and the checkpoint is
      its position. `publish` and `flush` return the last confirmed position; only that is acknowledged.
    - On Redis, tasks, parked changes and checkpoint are one atomic step: the whole batch, exactly once. On other
      brokers the tasks come first: after a crash between the two the listener publishes the batch again.
    - Tasks are published in the order in which they were fired.
    - A task that is published again keeps its id.

    Pipelined

    - Without `pipelined`, `publish` returns when the batch is confirmed.
    - With it, `publish` may return while the batch is in flight. Up to one batch is in flight: the next call of
      `publish`, `flush`, `read_checkpoint` or `attach` waits for it.
    - An error of a batch in flight is raised by the call that waits for it. Then the batch is not confirmed.
      `read_checkpoint` and `attach` do not raise CheckpointMovedError: they read the checkpoint again.

    Deferred

    - What a route coalesces or batches may be deferred. It is saved together with the checkpoint, and released by a
      later `publish`, also one without tasks. So the caller calls `publish` at least every IDLE_INTERVAL.
    - On Redis that call also detects that the broker lost its data; on RabbitMQ it answers and sends heartbeats.

    Errors

    - A publisher waits without a limit for a broker that is unavailable, full or slow, and continues by itself.
    - It raises BrokerError or another CDCError only if waiting cannot help, CheckpointMovedError if another listener
      took over or the broker lost its data, and StoppedError if `stop` ends a wait.
    - A message that is too large for the broker is parked, like a change that a route refused.
    """

    @property
    def retries(self) -> Sequence[Retry]:
        """Its waits for unavailable or full servers, for the metrics. Another thread may read them."""

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds, and the source's notes; None before the first.

        It waits for the batch in flight, so the answer is current. It changes nothing, here or in the broker.
        """

    def attach(self, source: str) -> str | None:
        """Prepare to publish the changes of `source`, and return the position after which they begin.

        Call it before the first `publish`, and again after each CheckpointMovedError and each loss of the source.
        It takes over tasks deferred by a previous listener. From here on no other listener can write the checkpoint
        without this one noticing.

        Raise BrokerError if the checkpoint belongs to another database.
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
        """Store these tasks, the parked changes and the checkpoint in the broker; return the confirmed position.

        `as_of` is when the last change was committed; the checkpoint carries it for `status`, which shows the lag.
        `notes` replace those stored with the checkpoint, in the same step; None leaves them unchanged. `also` are more
        Redis commands of that step, for the Redis that has the checkpoint, whose keys have its prefix. `before` is
        called before the checkpoint moves, perhaps more than once; the step waits for it.
        """

    def room(self, routes: Sequence[Route], kind: tuple[str, str, str], most: int) -> int:
        """Return how many tasks of each route a backfill may send now: up to `most`; 0 while one has to wait.

        It fills a queue up to half of CDC_MAX_QUEUE. Live changes have the other half, and never wait for it. `kind` is
        that of the changes. It waits for the batch in flight. Raises what `flush` raises.
        """

    def flush(self) -> str | None:
        """Wait for the batch in flight; return the confirmed position."""

    def pause(self, routes: Collection[str]) -> None:
        """From the next batch on, set the tasks of these routes (`Route.id`) aside, in order.

        They are saved with the checkpoint. Tasks of a route that is no longer named go to their queues, in order,
        before its new ones. `attach` does not change which routes are paused.
        """

    def drop_set_aside(self, route: str) -> int:
        """Drop the tasks of a paused route that were set aside; return how many there were."""

    def stop(self) -> None:
        """Make a waiting call raise StoppedError soon. May be called from a signal handler.

        A batch that does not have to wait is still published.
        """

    def close(self) -> None:
        """Release the broker; after `stop`, first send deferred tasks if the broker is available.

        Safe to call twice, and before `attach`.
        """
