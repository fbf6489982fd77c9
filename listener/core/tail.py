"""What looks at a database's log from now on, beside a listener or without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cdc_tasks.changes import Change

__all__ = ["Tail"]


class Tail(Protocol):
    """A reader of the log that leaves nothing on the server, and takes nothing from a listener.

    `open` and `changes` block; `stop` ends them from a signal handler or another thread. After SourceLostError it may
    be opened again. All else is called from one thread.
    """

    @property
    def reads_by(self) -> str:
        """What a person sees of it on the server, in words; known once open."""

    @property
    def unseen(self) -> Sequence[tuple[str, str]]:
        """The tables (schema, name) whose changes the server does not send, of all that are there; known once open."""

    @property
    def misses_changes(self) -> bool:
        """Whether what is committed between two `open` is missing."""

    def open(self) -> None:
        """Connect. Raises SourceError if a person is needed, SourceLostError otherwise."""

    def changes(self) -> Iterator[Sequence[Change]]:
        """Yield what is committed from now on, in the order of the commits, muted changes and enqueued tasks as well.

        An empty sequence comes at least every IDLE_INTERVAL. It ends after `stop`. Raises SourceLostError, SourceError,
        GapError.
        """

    def stop(self) -> None:
        """Make `open` and `changes` return soon."""

    def close(self) -> None:
        """Close the connections, and with them what the server keeps for them. Safe to call twice."""
