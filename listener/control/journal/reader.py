"""Reads a journal, even while a listener writes it: a summary, and its changes."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from cdc_tasks.changes import Change
from cdc_tasks.extras import check_extra
from listener.control.journal.blocks import Blocks
from listener.control.journal.file import (
    SEPARATOR,
    JournalError,
    JournalledChange,
    microseconds,
    now,
    parsed,
    size_of,
    state_of,
    time_of,
    transaction_in,
)
from listener.core.history import Gap, Kept, Part, Selection, Wanted, missing_of

__all__ = ["JournalReader", "Summary"]

_LONGEST_READ: Final = 0.5  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A summary of a journal."""

    id: str  # numbers are valid only in this journal
    since: datetime  # all later changes are in the journal, except the gaps
    first: int  # the number of the first change
    end: int  # the number of the next change
    bytes: int
    gaps: tuple[Gap, ...]

    def missing(self, selection: Selection) -> list[Gap]:
        """Return the missing parts of the selection's time range."""
        return missing_of(selection, self.since, self.gaps)


class _Wanted(NamedTuple):
    selection: Selection
    pattern: re.Pattern[bytes] | None  # in each of their lines; None: lines have to be parsed
    end: int  # the number after the last one
    digits: bytes  # in each of them, as logged; empty: unknown


class JournalReader:
    """Reads a journal, even while a listener writes it; fulfils `listener.core.history.History`."""

    name = "the journal"
    kind = "journal"

    def __init__(self, path: Path) -> None:
        """Raise JournalError if there is no journal, MissingExtraError."""
        check_extra("journal")
        if not path.exists():
            raise JournalError(
                f"There is no journal {path}.",
                hint="Set CDC_JOURNAL for the listener, and run this command where the listener runs, with the same "
                "CDC_JOURNAL and CDC_NAME.",
                code="journal_missing",
            )
        self._path = path
        self._blocks_of = Blocks()

    def summary(self) -> Summary:
        """Return a summary. Raise JournalError."""
        with closing(self._open()) as connection, _readable(self._path):
            connection.execute("BEGIN")
            state = state_of(connection)
            (first,) = connection.execute("SELECT min(first) FROM block").fetchone()
            size = size_of(connection)
            gaps = connection.execute("SELECT since, until FROM gap ORDER BY first").fetchall()
            if "open_gap" in state:
                gaps.append((int(state["open_gap"]), now()))
        end = int(state["next"])
        return Summary(
            id=state["id"],
            since=time_of(int(state["since"])),
            first=end if first is None else first,
            end=end,
            bytes=size,
            gaps=tuple(Gap(since=time_of(begin), until=time_of(until)) for begin, until in gaps),
        )

    def kept(self) -> Kept:
        """See `History.kept`."""
        found = self.summary()
        return Kept(id=found.id, since=found.since, end=str(found.end), gaps=found.gaps)

    def read(self, wanted: Wanted, start: str, limit: int) -> Part:
        """See `History.read`; positions are numbers. Raise JournalError."""
        found, place = list[Change](), int(start or 0)
        self._check(wanted, place)
        until = monotonic() + _LONGEST_READ
        for number, change in self.changes(wanted.selection, start=place, end=int(wanted.end)):
            place = number
            if change is not None:
                found.append(change)
            if len(found) >= limit or (change is None and monotonic() > until):
                return Part(found, str(place), is_end=False)
        return Part(found, str(place), is_end=True)

    def _check(self, wanted: Wanted, place: int) -> None:
        summary = self.summary()
        if summary.id != wanted.id:
            raise JournalError(
                "The replay began with another journal.",
                hint="Let the listener with that journal do it, or request the replay again.",
                code="journal_other",
            )
        if place and place < summary.first:
            raise JournalError(
                "The journal has dropped changes that the replay has not reached.",
                hint="Raise CDC_JOURNAL_SIZE or CDC_JOURNAL_AGE, and request the replay again with a later --since.",
                code="journal_gap",
            )

    def close(self) -> None:
        """See `History.close`: each read has its own connection."""

    def changes(
        self, selection: Selection, *, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, JournalledChange | None]]:
        """Yield the changes from number `start` on and below `end`, each with the next number.

        After each block, yield the next number without a change: the progress of reading. Raise JournalError.
        """
        wanted = _Wanted(
            selection, _pattern(selection.row), _BEYOND if end is None else end, _digits(selection)
        )
        while blocks := self._blocks(wanted, start):
            for first, count, tables, data in blocks:
                if not selection.tables or set(json.loads(tables)) & set(selection.tables):
                    yield from self._in_block(first, data, wanted, start)
                start = first + count
                yield start, None

    def _blocks(self, wanted: _Wanted, start: int) -> list[Any]:
        with closing(self._open()) as connection, _readable(self._path):
            return connection.execute(
                # In the order of the table, not by the index of times: + prevents SQLite from using it.
                "SELECT first, count, tables, data FROM block"
                " WHERE first >= (SELECT coalesce(max(first), 0) FROM block WHERE first <= ?)"
                " AND first + count > ? AND first < ? AND +newest >= ? AND +oldest < ? ORDER BY first LIMIT 20",
                (start, start, wanted.end, *_bounds(wanted.selection)),
            ).fetchall()

    def _in_block(
        self, first: int, data: bytes, wanted: _Wanted, start: int
    ) -> Iterator[tuple[int, JournalledChange]]:
        text, pattern = self._blocks_of.text(data, with_digits=wanted.digits), wanted.pattern
        if not text or (pattern is not None and not pattern.search(text)):
            return
        lines = text.split(SEPARATOR)
        for number, line in enumerate(lines, first):
            if not start <= number < wanted.end or (pattern is not None and not pattern.search(line)):
                continue
            place = number - first + 1
            following = lines[place] if place < len(lines) else self._first_line(number + 1)
            is_last = following is None or transaction_in(line) != transaction_in(following)
            change = parsed(line, is_last=is_last)
            if wanted.selection.has(change):
                yield number + 1, change

    def _first_line(self, number: int) -> bytes | None:
        """Return the first line of the block that begins with this number; None if there is no such block."""
        with closing(self._open()) as connection, _readable(self._path):
            found = connection.execute("SELECT data FROM block WHERE first = ?", (number,)).fetchone()
        return None if found is None else self._blocks_of.first_line(found[0])

    def _open(self) -> sqlite3.Connection:
        with _readable(self._path):
            return sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )


_BEYOND: Final = 1 << 62


class _readable:  # noqa: N801 - a context manager
    """Raise JournalError for SQLite's errors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error | KeyError):
            raise JournalError(
                f"The journal {self._path} cannot be read: {error}.",
                hint="Check the listener's log for journal_failed, and the permissions of the directory.",
            ) from error


def _bounds(selection: Selection) -> tuple[int, int]:
    since, until = selection.since, selection.until
    return 0 if since is None else microseconds(since), _BEYOND if until is None else microseconds(until)


def _digits(selection: Selection) -> bytes:
    """Return the longest of the row's values that are only digits; empty if there is none."""
    values = (value for _, value in selection.row if value.isascii() and value.isdecimal())
    return max(values, key=len, default="").encode()


_PLAIN: Final = re.compile(r"[ !#-\[\]-~]+")  # unchanged in JSON


def _pattern(row: Sequence[tuple[str, str]]) -> re.Pattern[bytes] | None:
    """Return a pattern found in each line of such a row; None: the lines have to be parsed."""
    plain = [(name, value) for name, value in row if _PLAIN.fullmatch(name) and _PLAIN.fullmatch(value)]
    if not plain:
        return None
    name, value = plain[0]
    return re.compile(rb'"%b": ?"?%b"?[,}]' % (re.escape(name.encode()), re.escape(value.encode())))
