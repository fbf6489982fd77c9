"""A reader of a database's log from now on, with or without a listener."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cdc_tasks.changes import Change

__all__ = ["Tail"]


class Tail(Protocol):
    """Reads the log without leaving anything on the server, and without affecting a listener.

    `open` and `changes` block; `stop` ends them from a signal handler or another thread. After SourceLostError it may
    be opened again. Everything else is called from one thread.
    """

    @property
    def reads_by(self) -> str:
        """How it appears on the server, as text; known once open."""

    @property
    def unseen(self) -> Sequence[tuple[str, str]]:
        """The existing tables (schema, name) whose changes the server does not send; known once open."""

    @property
    def misses_changes(self) -> bool:
        """Whether changes committed between two calls of `open` are missing."""

    def open(self) -> None:
        """Connect. Raise SourceError if a person has to act, SourceLostError otherwise."""

    def changes(self) -> Iterator[Sequence[Change]]:
        """Yield the changes committed from now on, in commit order, including muted changes and enqueued tasks.

        An empty sequence comes at least every IDLE_INTERVAL. It ends after `stop`. Raise SourceLostError, SourceError,
        GapError.
        """

    def stop(self) -> None:
        """Make `open` and `changes` return soon."""

    def close(self) -> None:
        """Close the connections, and thereby everything that the server keeps for them. Safe to call twice."""
