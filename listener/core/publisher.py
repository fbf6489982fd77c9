"""What handing tasks to a broker promises."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Parked

__all__ = [
    "BrokerAwayError",
    "BrokerError",
    "CheckpointMovedError",
    "MessageTooLargeError",
    "Publisher",
    "StoppedError",
]


class BrokerError(CDCError):
    """The broker cannot be used as it is; a person has to mend it."""


class BrokerAwayError(CDCError):
    """The broker cannot take anything now; waiting may help."""


class MessageTooLargeError(CDCError):
    """The broker will never take a message of this size; other messages pass."""

    def __init__(self, message: str, *, limit: int, hint: str | None = None) -> None:
        """`limit`: how many bytes the broker takes in one message."""
        super().__init__(message, hint=hint)
        self.limit = limit


class CheckpointMovedError(CDCError):
    """The broker's checkpoint is not the one that we left: what comes next has to be read again."""


class StoppedError(Exception):
    """The listener was told to stop while it waited for the broker; nothing was acknowledged."""


class Publisher(Protocol):
    """Hands tasks to the broker and keeps the checkpoint.

    It waits out a broker that is away, full or slow, and raises BrokerError only where waiting cannot help,
    CheckpointMovedError where another listener took over, Stopped after `stop`.
    """

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; None before the first.

        `source` is to be given before the first `publish`; raises BrokerError where the checkpoint is that of
        another database.
        """

    @property
    def notes(self) -> str | None:
        """What the source noted with the checkpoint, as it was when that was last asked for."""

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        ahead: bool = False,
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, the parked changes, and the checkpoint: on Redis in one atomic step.

        `as_of` is when the last change was committed: the checkpoint carries it for whoever asks for the lag.
        `notes`, where there are any, replace those that were kept with the checkpoint, in the same step as it.
        With `ahead` it may return before the broker has answered, and the next call waits for that. Returns the
        last position whose tasks the broker is known to hold.
        """

    def settle(self) -> str | None:
        """Wait for what was published ahead; returns the last position whose tasks the broker holds."""

    def stop(self) -> None:
        """Make a waiting `publish` raise StoppedError soon; may be called from a signal handler."""

    def close(self) -> None:
        """Let go of the broker."""
