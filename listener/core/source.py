"""What a source of changes promises, so that the loop, the commands and the tests need not know which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError

__all__ = ["Batch", "GapError", "Monitor", "Saved", "SourceError", "SourceLostError"]


class SourceError(CDCError):
    """The database cannot be read as it is; a person has to mend it."""


class SourceLostError(CDCError):
    """The connection to the database was lost; trying again may help."""


class GapError(CDCError):
    """The source no longer has changes that were never published."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a former run left: where it was, and what its source wanted to remember."""

    position: str
    notes: str | None = None  # in the source's own words; None: it left none


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that are published together, in commit order; without any, only the position moves on."""

    changes: Sequence[Change]
    position: str  # of the last change, or a later point of the log before the next one
    as_of: datetime | None = None  # when the last change was committed; None where nothing is new
    settle: bool = True  # the broker is to hold all of it before the next batch is asked for
    notes: str | None = (
        None  # what the source wants to know at its next start; None: what it noted before holds
    )


class Monitor(Protocol):
    """A reader of one database's log.

    The monitor owns its connections and everything that it makes on the server (slot, publication, lock);
    the loop owns the order: publish, then acknowledge. Changes come in commit order. Positions are opaque
    to everybody else: they are stored as the checkpoint and given back. So are the notes of a batch, in the
    same atomic step as its position. On each replay a change has the position and the id it had.

    `open` and `batches` block; `stop` may be called from any thread or signal handler.
    """

    @property
    def source(self) -> str:
        """What names the database in checkpoints and in the ids of its changes; known once open."""

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """Connect and become the only reader; waits as a standby while another listener is, until `stop`.

        `saved` is None before the first start. Otherwise something was published before, and a source that knows
        nothing of us is a GapError. A standby has what was saved when it began to wait: `again` returns what holds when
        the wait is over.

        Raises SourceError where a person is needed, GapError where the log is gone, SourceLostError otherwise.
        """

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield batches of what lies beyond `after` (None: all that the source still has for us).

        A lone change is not held back; a large transaction comes in pieces. Ends after `stop`.
        Raises GapError where `after` lies before the source's oldest log, SourceLostError.
        """

    def acknowledge(self, position: str) -> None:
        """Let the source forget its log up to `position`, now or a little later; never beyond it."""

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""

    def close(self) -> None:
        """Send the last acknowledgement and let go of the source; safe to call twice."""
