"""Changes that were committed before and can be read once more: what a replay asks for, and what keeps them."""

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
    """Which changes: committed in [since, until), of these tables, of the row with these values."""

    since: datetime | None = None
    until: datetime | None = None
    tables: tuple[str, ...] = ()  # schema.table; none: all
    row: tuple[tuple[str, str], ...] = ()  # columns and values, as texts; before the change or after it

    def has(self, change: Change) -> bool:
        """Return whether it is one of them."""
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
    """Changes of some time that are not there any more."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a history has now."""

    id: str  # another one has other places
    since: datetime  # all changes from then on are there, but for the gaps
    end: str  # the place behind the last change
    gaps: tuple[Gap, ...] = ()

    def missing(self, selection: Selection) -> list[Gap]:
        """Return what of the selection's time is not there."""
        return missing_of(selection, self.since, self.gaps)


def missing_of(selection: Selection, kept_since: datetime, gaps: Iterable[Gap]) -> list[Gap]:
    """Return what of the selection's time is missing, if all since `kept_since` but for `gaps` is there."""
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
    """What a reader of a history asks for."""

    id: str  # of the history: see `Kept`
    selection: Selection
    end: str  # the place behind the last change that it may get
    accepts_gap: bool = False  # go on where something cannot be read


class Part(NamedTuple):
    """Some changes that follow each other."""

    changes: Sequence[Change]
    next: str  # the place behind them
    is_end: bool  # nothing that is wanted comes behind them


class History(Protocol):
    """The journal, or a server's log. A place is a text of its own; empty: before the first change.

    Changes come in the order in which they were committed, with the ids, positions and values that they were streamed
    with. To be used by one thread at a time.
    """

    name: str  # for a person: `the journal`, `the binlog`
    kind: str  # for programs: `journal`, `binlog`

    def kept(self) -> Kept:
        """Return what there is. Raises CDCError."""

    def read(self, wanted: Wanted, start: str, limit: int) -> Part:
        """Read up to about `limit` changes from `start` on, for half a second at most, and at least a step further.

        Cheap if `start` is where the last part ended. Raises SourceLostError if trying again may help, and CDCError.
        """

    def close(self) -> None:
        """End what was opened for reading; safe to call twice, and from another thread."""
