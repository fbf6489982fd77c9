"""Past changes that can be read again: the selection for a replay, and the histories that keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from cdc_tasks.changes import Change

__all__ = ["Gap", "History", "Kept", "Part", "Selection", "Wanted", "missing_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A selection of changes: committed in [since, until), of these tables, of the row with these values."""

    since: datetime | None = None
    until: datetime | None = None
    tables: tuple[str, ...] = ()  # schema.table; none: all
    row: tuple[tuple[str, str], ...] = ()  # columns and values as strings; before or after the change

    def has(self, change: Change) -> bool:
        """Return whether the change is selected."""
        if self.tables and f"{change.schema}.{change.table}" not in self.tables:
            return False
        if self.since is not None and change.committed_at < self.since:
            return False
        if self.until is not None and change.committed_at >= self.until:
            return False
        return not self.row or any(_is_row(each, self.row) for each in (change.before, change.after))


def _is_row(row: Any, wanted: Iterable[tuple[str, str]]) -> bool:
    return row is not None and all(name in row and _text(row[name]) == value for name, value in wanted)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time range whose changes no longer exist."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The current contents of a history."""

    id: str  # positions are valid only for this id
    since: datetime  # all later changes exist, except the gaps
    end: str  # the position after the last change
    gaps: tuple[Gap, ...] = ()

    def missing(self, selection: Selection) -> list[Gap]:
        """Return the missing parts of the selection's time range."""
        return missing_of(selection, self.since, self.gaps)


def missing_of(selection: Selection, kept_since: datetime, gaps: Iterable[Gap]) -> list[Gap]:
    """Return the missing parts of the selection's time range, if all since `kept_since` except `gaps` is kept."""
    since, until = selection.since, selection.until
    missing = [
        each
        for each in gaps
        if (since is None or each.until > since) and (until is None or each.since < until)
    ]
    if since is not None and since < kept_since:
        missing.insert(0, Gap(since=since, until=min(kept_since, until or kept_since)))
    return missing


class Wanted(NamedTuple):
    """A request to read a history."""

    id: str  # of the history: see `Kept`
    selection: Selection
    end: str  # the position after the last change that it may get
    accepts_gap: bool = False  # continue after unreadable parts


class Part(NamedTuple):
    """Some consecutive changes."""

    changes: Sequence[Change]
    next: str  # the position after them
    is_end: bool  # no selected changes follow


class History(Protocol):
    """The journal, or a server's log. A position is a string in its own format; empty: before the first change.

    Changes come in the order in which they were committed, with the ids, positions and values that they were streamed
    with. Use it from one thread at a time.
    """

    name: str  # display name: `the journal`, `the binlog`
    kind: str  # for programs: `journal`, `binlog`

    def kept(self) -> Kept:
        """Return the current contents. Raise CDCError."""

    def read(self, wanted: Wanted, start: str, limit: int) -> Part:
        """Read up to about `limit` changes from `start` on, for at most half a second, and at least one step.

        Cheap if `start` is the end of the last part. Raise SourceLostError if a retry may help, and CDCError.
        """

    def close(self) -> None:
        """Close everything opened for reading. Safe to call twice, and from another thread."""
