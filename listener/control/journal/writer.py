"""The journal: changes kept on the listener's disk, to look them up and replay them. PostgreSQL removes read changes.

It is an SQLite file in CDC_JOURNAL. A block has the changes of a batch as JSON, compressed with zstandard; small
blocks are packed together. A block is written before the step that publishes its batch. So after a crash the journal
has the unpublished batch, and gets it again: a block that begins with an already stored change
replaces everything from that change on. Changes missing for any other reason are a gap, with its times.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple
from uuid import uuid4

import structlog

from cdc_tasks.changes import Change
from cdc_tasks.extras import check_extra
from cdc_tasks.routing.router import Call, Parked
from listener.control.journal.blocks import Blocks
from listener.control.journal.file import (
    ROW_OVERHEAD,
    SCHEMA,
    JournalError,
    id_in,
    microseconds,
    now,
    size_of,
    state_of,
    time_of,
)
from listener.control.journal.lines import LARGE, Block, block_of

__all__ = ["Journal"]

log = structlog.get_logger()

_PACKED: Final = 1_000  # changes in a block that was made of small ones
_REMEMBERED: Final = 16  # positions of the last batches: a checkpoint is one of them
_TIDY_EVERY: Final = 30.0  # seconds
_AGAIN_AFTER: Final = 1.0  # seconds, after a failed write


class _Tail(NamedTuple):
    """The small blocks at the end, not packed yet."""

    first: int
    changes: int


class Journal:
    """Writes the journal in its own thread; errors there never stop the stream."""

    def __init__(self, path: Path, *, max_age: float, max_bytes: int) -> None:
        """`max_age` in seconds. Raises JournalError, MissingExtraError."""
        check_extra("journal")
        self.path = path
        self._max_age = timedelta(seconds=max_age)
        self._max_bytes = max_bytes
        self._blocks = Blocks()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it contains the application's rows
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + SCHEMA)
            self._begin()
        except (OSError, sqlite3.Error) as error:
            raise JournalError(
                f"The journal {path} cannot be used: {error}.",
                hint="Set CDC_JOURNAL to the listener's own directory on a local disk, or leave it out.\n"
                f"To set a damaged journal aside: mv {path} {path}.damaged",
            ) from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._pending: Future[None] | None = None
        self._position: str | None = None  # of the last batch passed to the thread
        self._tidied_at = monotonic()
        self._failed_at: float | None = None  # nothing was written since then
        self._is_continuous = True  # the next change directly follows the last stored one
        self._is_attaching = True  # the next change may be stored already

    def _begin(self) -> None:
        """Read the state, or create it."""
        state = state_of(self._connection)
        if "id" not in state:
            state = {
                "id": uuid4().hex,
                "since": str(now()),
                "next": "1",
                "reached": "[]",
                "reached_at": str(now()),
            }
            self._connection.executemany("INSERT INTO state VALUES (?, ?)", state.items())
        self.id = state["id"]
        self._next = int(state["next"])
        self._reached: list[str] = json.loads(state["reached"])
        self._reached_at = int(state["reached_at"])
        self._tail = _Tail(self._next, 0)
        self._bytes = size_of(self._connection)

    @property
    def end(self) -> int:
        """The number of the next change; changes being written may or may not be counted."""
        return self._next

    def attach(self, after: str | None) -> None:
        """Prepare for the changes after the checkpoint `after`."""
        self.flush()
        self._position = None
        self._is_attaching = True
        is_known = (
            after in self._reached or (self._next == 1 and not self._reached) or self._has_position(after)
        )
        self._is_continuous = self._is_continuous and is_known and not self._has_open_gap()

    def _has_position(self, position: str | None) -> bool:
        return self._finds("SELECT 1 FROM block WHERE position = ? LIMIT 1", position)

    def _has_open_gap(self) -> bool:
        return self._finds("SELECT 1 FROM state WHERE name = ?", "open_gap")

    def _finds(self, query: str, value: str | None) -> bool:
        try:
            return self._connection.execute(query, (value,)).fetchone() is not None
        except sqlite3.Error:  # the next write fails too, and is logged
            return False

    def record(
        self, fired: Iterable[Call | Parked], changes: Sequence[Change], position: str
    ) -> Sequence[Call | Parked]:
        """Return the fired tasks, and start to write the changes: `flush` waits for that."""
        seen = list(fired)
        self._start(block_of(changes, seen), position)
        return seen

    def flush(self) -> None:
        """Return when the recorded changes are in the file, or have failed, which is logged."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Write the recorded changes, and close the file. Safe to call twice."""
        self.flush()
        self._writer.shutdown()
        self._connection.close()

    # --- In the thread --------------------------------------------------------------------------------------

    def _start(self, block: Block | None, position: str) -> None:
        is_tidy = monotonic() - self._tidied_at < _TIDY_EVERY
        if block is None and position == self._position and is_tidy:
            return
        self.flush()
        self._position = position
        self._pending = self._writer.submit(self._write, block, position)

    def _write(self, block: Block | None, position: str) -> None:
        at = monotonic()
        if self._failed_at is not None and at - self._failed_at < _AGAIN_AFTER:
            self._is_continuous = self._is_continuous and block is None
            return
        before = self._next, self._tail, self._bytes, self._is_continuous, self._is_attaching
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._write_all(block, position, at)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._next, self._tail, self._bytes, self._is_continuous, self._is_attaching = before
            self._give_up(error, at, lost=block is not None)
        else:
            if self._failed_at is not None:
                log.info("journal_works_again")
            self._failed_at = None

    def _give_up(self, error: sqlite3.Error, at: float, *, lost: bool) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()
        if lost:
            self._is_continuous = False
        if self._failed_at is None:
            log.error(
                "journal_failed",
                path=str(self.path),
                error=str(error),
                hint="The stream continues; unwritten changes are a gap in the journal. Make room on the disk of "
                "CDC_JOURNAL, or lower CDC_JOURNAL_SIZE.",
            )
        self._failed_at = at

    def _write_all(self, block: Block | None, position: str, at: float) -> None:
        if block is not None:
            if self._is_attaching and self._cut_at(block):
                self._is_continuous = True
            self._is_attaching = False
            if not self._is_continuous:
                self._note_gap(block)
            self._insert(block, position)
        elif not self._is_continuous:  # only a change shows how much is missing
            self._connection.execute(
                "INSERT OR IGNORE INTO state VALUES ('open_gap', ?)", (str(self._reached_at),)
            )
        self._reached_at = now() if block is None else block.newest  # it may be old
        self._reached = [*self._reached, position][-_REMEMBERED:]
        self._set("next", str(self._next))
        self._set("reached", json.dumps(self._reached))
        self._set("reached_at", str(self._reached_at))
        if at - self._tidied_at >= _TIDY_EVERY or self._bytes > self._max_bytes:
            self._tidied_at = at
            self._drop_oldest()

    def _insert(self, block: Block, position: str) -> None:
        pack = self._blocks
        data = pack.pack(block.lines) if block.rows is None else pack.pack_rows(block.rows)
        tables = json.dumps(sorted(block.tables))
        if self._next == 1:
            since = int(
                state_of(self._connection)["since"]
            )  # when the file was created: nothing was committed since
            self._set("since", str(min(block.oldest, since)))
        row = self._next, block.size, block.oldest, block.newest, position, tables, data
        self._connection.execute("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._bytes += len(data) + ROW_OVERHEAD
        self._next += block.size
        if block.size >= LARGE:
            self._pack_tail()
            self._tail = _Tail(self._next, 0)
            return
        self._tail = _Tail(self._tail.first, self._tail.changes + block.size)
        if self._tail.changes >= _PACKED:
            self._pack_tail()
            self._tail = _Tail(self._next, 0)

    def _pack_tail(self) -> None:
        """Merge the small blocks into one."""
        first, count = self._tail
        rows = self._connection.execute(
            "SELECT count, oldest, newest, position, tables, data FROM block WHERE first >= ? AND first < ?"
            " ORDER BY first",
            (first, first + count),
        ).fetchall()
        if len(rows) < 2:
            return
        lines = [line for row in rows for line in self._blocks.unpack(row[5])]
        tables = json.dumps(sorted({name for row in rows for name in json.loads(row[4])}))
        data = self._blocks.pack(lines)
        self._connection.execute("DELETE FROM block WHERE first >= ? AND first < ?", (first, first + count))
        times = min(row[1] for row in rows), max(row[2] for row in rows)
        self._connection.execute(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?)",
            (first, count, *times, rows[-1][3], tables, data),
        )
        self._bytes += len(data) + ROW_OVERHEAD - sum(len(row[5]) + ROW_OVERHEAD for row in rows)

    def _cut_at(self, block: Block) -> bool:
        """Remove the block's first change and everything after it; return whether that change was stored."""
        time = block.first_time
        rows = self._connection.execute(
            "SELECT first, data FROM block WHERE newest >= ? AND oldest <= ? ORDER BY first DESC",
            (time, time),
        )
        for first, data in rows:
            lines = self._blocks.unpack(data)
            place = next((place for place, line in enumerate(lines) if id_in(line) == block.first_id), None)
            if place is not None:
                self._cut(first, lines[:place])
                return True
        return False

    def _cut(self, first: int, kept: list[bytes]) -> None:
        run = self._connection.execute
        run("DELETE FROM block WHERE first > ?", (first,))
        if kept:
            data = self._blocks.pack(kept)
            run("UPDATE block SET count = ?, data = ? WHERE first = ?", (len(kept), data, first))
        else:
            run("DELETE FROM block WHERE first = ?", (first,))
        self._next = first + len(kept)
        self._tail = _Tail(self._next, 0)
        run("DELETE FROM gap WHERE first > ?", (self._next,))
        run("DELETE FROM state WHERE name = 'open_gap'")

    def _note_gap(self, block: Block) -> None:
        opened = state_of(self._connection).get("open_gap")
        since = int(opened) if opened is not None else self._reached_at
        until = max(since, block.oldest)
        self._connection.execute("INSERT INTO gap VALUES (?, ?, ?)", (self._next, since, until))
        self._connection.execute("DELETE FROM state WHERE name = 'open_gap'")
        self._is_continuous = True
        log.warning("journal_gap", since=_shown(since), until=_shown(until))

    def _drop_oldest(self) -> None:
        """Drop changes that are too old or too many."""
        too_old = microseconds(datetime.now(UTC) - self._max_age)
        rows = self._connection.execute("SELECT first, count, newest, length(data) FROM block ORDER BY first")
        dropped = None
        for first, count, newest, length in rows.fetchall():
            if newest >= too_old and self._bytes <= self._max_bytes:
                break
            dropped = first + count, newest
            self._bytes -= length + ROW_OVERHEAD
        if dropped is not None:
            self._connection.execute("DELETE FROM block WHERE first < ?", (dropped[0],))
            self._connection.execute("DELETE FROM gap WHERE first <= ?", (dropped[0],))
            self._set("since", str(dropped[1] + 1))
            self._tail = _Tail(max(self._tail.first, dropped[0]), 0)

    def _set(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))


def _shown(micros: int) -> str:
    return time_of(micros).isoformat()
