"""The journal's file: an SQLite database whose blocks have changes as JSON lines, compressed with zstandard."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from cdc_tasks.changes import RowChange
from cdc_tasks.errors import CDCError

__all__ = [
    "MUTED",
    "ROW_OVERHEAD",
    "SCHEMA",
    "SEPARATOR",
    "UNREADABLE",
    "JournalError",
    "JournalledChange",
    "id_in",
    "journal_path",
    "microseconds",
    "now",
    "parsed",
    "size_of",
    "state_of",
    "time_of",
    "transaction_in",
]

ROW_OVERHEAD: Final = 200  # bytes of a block in addition to its data
SEPARATOR: Final = b"\x1e"  # between two lines: never in JSON; the database's documents may have line ends
MUTED: Final = b"m"  # before a line
UNREADABLE: Final = b"u"  # the row could not be rendered, and is missing

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS block (
    first INTEGER PRIMARY KEY,  -- the number of its first change; numbers count from 1, without gaps
    count INTEGER NOT NULL,
    oldest INTEGER NOT NULL,    -- the commits' times, in microseconds since 1970
    newest INTEGER NOT NULL,
    position TEXT NOT NULL,     -- of its last batch
    tables TEXT NOT NULL,       -- a JSON list of schema.table
    data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS block_times ON block (newest, oldest);
CREATE TABLE IF NOT EXISTS gap (first INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class JournalError(CDCError):
    """The journal cannot be used."""

    code = "journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalledChange(RowChange):
    """A change as stored in the journal."""

    muted: bool = False
    is_unreadable: bool = False

    @property
    def is_muted(self) -> bool:
        return self.muted


def journal_path(directory: str, name: str) -> Path:
    """Return the file of the listener with this CDC_NAME."""
    return Path(directory) / f"{name}.journal"


def parsed(line: bytes, *, is_last: bool) -> JournalledChange:
    """Return the change in a line; `is_last`: last of its transaction, which only the next line shows."""
    marks = line[: line.index(b"{")]
    message = {**json.loads(line[len(marks) :]), "is_last": is_last}
    change = cast("JournalledChange", JournalledChange.from_message(message))
    if not marks:
        return change
    return replace(change, muted=MUTED in marks, is_unreadable=UNREADABLE in marks)


def id_in(line: bytes) -> bytes:
    """Return the id of a line's change, without parsing it."""
    start = line.index(b'"id":') + 5
    opening = line.index(b'"', start)
    return line[opening + 1 : line.index(b'"', opening + 1)]


def transaction_in(line: bytes) -> bytes:
    """Return the common start of the ids of the line's transaction."""
    return id_in(line).rpartition(b"-")[0]


def size_of(connection: sqlite3.Connection) -> int:
    """Return the size of the blocks in bytes."""
    count, size = connection.execute("SELECT count(*), coalesce(sum(length(data)), 0) FROM block").fetchone()
    return int(size) + int(count) * ROW_OVERHEAD


def state_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the state of the whole journal."""
    return dict(connection.execute("SELECT name, value FROM state").fetchall())


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Return a time in microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def now() -> int:
    """Return the time in microseconds since 1970."""
    return microseconds(datetime.now(UTC))


def time_of(micros: int) -> datetime:
    """Return the time from microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=micros)
