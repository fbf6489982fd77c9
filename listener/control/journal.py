"""The journal: changes kept on the listener's disk, to be looked up and fired again. PostgreSQL forgets what was read.

It is a file of SQLite, in CDC_JOURNAL. A block has the changes of a batch as JSON, compressed with zstandard; small
blocks are packed together. A block is written before the step that publishes its batch. So after a crash the journal
has the batch that was not published, and gets it again: a block that begins with a change that is there already takes
the place of all from that change on. What is missing for any other reason is a gap, with its times.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter, is_, itemgetter
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, cast
from uuid import uuid4

import structlog

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.errors import CDCError
from cdc_tasks.extras import check_extra
from cdc_tasks.routing.router import Call, Parked, Route
from listener.core.logged_change import LoggedChange

__all__ = [
    "Gap",
    "Journal",
    "JournalError",
    "JournalReader",
    "JournalledChange",
    "Selection",
    "Summary",
    "journal_path",
]

log = structlog.get_logger()

_ENQUEUED: Final = EventType.ENQUEUED.value
_PACKED: Final = 1_000  # changes in a block that was made of small ones
_LARGE: Final = 500  # changes in a block that is left as it is
_REMEMBERED: Final = 16  # positions that the last batches had: a checkpoint is one of them
_ROW_OVERHEAD: Final = 200  # bytes of a block beside its data
_TIDY_EVERY: Final = 30.0  # seconds
_AGAIN_AFTER: Final = 1.0  # seconds, after a write that failed
_BETWEEN: Final = b"\x1e"  # no JSON has it; documents of the database's have line ends
_MUTED: Final = b"m"
_UNREADABLE: Final = b"u"  # the row could not be rendered, and is not here

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS block (
    first INTEGER PRIMARY KEY,  -- the number of its first change; numbers count from 1, without a hole
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
    """A change as the journal has it."""

    muted: bool = False
    is_unreadable: bool = False

    @property
    def is_muted(self) -> bool:
        return self.muted


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which changes: committed in [since, until), of these tables, of the row with these values."""

    since: datetime | None = None
    until: datetime | None = None
    tables: tuple[str, ...] = ()  # schema.table; none: all
    row: tuple[tuple[str, str], ...] = ()  # columns and values, as texts; before the change or after it

    def has(self, change: RowChange) -> bool:
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
    """Changes of some time that are not in the journal."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a journal holds."""

    id: str  # another journal numbers its changes in another way
    since: datetime  # all changes from then on are here, but for the gaps
    first: int  # the number of the first change
    end: int  # the number that the next change will get
    bytes: int
    gaps: tuple[Gap, ...]

    def missing(self, selection: Selection) -> list[Gap]:
        """Return what of the selection's time is not here."""
        since, until = selection.since, selection.until
        missing = [
            each
            for each in self.gaps
            if (since is None or each.until > since) and (until is None or each.since < until)
        ]
        if since is not None and since < self.since:
            missing.insert(0, Gap(since=since, until=min(self.since, until or self.since)))
        return missing


def journal_path(directory: str, name: str) -> Path:
    """Return the file of the listener with this CDC_NAME."""
    return Path(directory) / f"{name}.journal"


class _Block(NamedTuple):
    """The changes of one batch, not yet compressed."""

    lines: list[bytes]
    oldest: int
    newest: int
    tables: set[str]
    first_id: bytes


class _Tail(NamedTuple):
    """The small blocks at the end, which are still to be packed."""

    first: int
    changes: int


class Journal:
    """Writes the journal, in a thread of its own; what goes wrong there never stops the stream."""

    def __init__(self, path: Path, *, max_age: float, max_bytes: int) -> None:
        """`max_age` in seconds. Raises JournalError, MissingExtraError."""
        check_extra("journal")
        self.path = path
        self._max_age = timedelta(seconds=max_age)
        self._max_bytes = max_bytes
        self._zstd = _Zstd()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # rows of an application are in it
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _SCHEMA
            )
            self._begin()
        except (OSError, sqlite3.Error) as error:
            raise JournalError(
                f"The journal {path} cannot be used: {error}.",
                hint="Let CDC_JOURNAL name a directory of the listener's own on a local disk, or leave it out.\n"
                f"A damaged journal can be put aside: mv {path} {path}.damaged",
            ) from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._pending: Future[None] | None = None
        self._position: str | None = None  # of the last batch that was handed to the thread
        self._tidied_at = monotonic()
        self._failed_at: float | None = None  # since then nothing was written
        self._is_continuous = True  # the next change is the one after the last that is here
        self._is_attaching = True  # the next change may be here already

    def _begin(self) -> None:
        """Read the state, or make it."""
        state = _state(self._connection)
        if "id" not in state:
            state = {
                "id": uuid4().hex,
                "since": str(_now()),
                "next": "1",
                "reached": "[]",
                "reached_at": str(_now()),
            }
            self._connection.executemany("INSERT INTO state VALUES (?, ?)", state.items())
        self.id = state["id"]
        self._next = int(state["next"])
        self._reached: list[str] = json.loads(state["reached"])
        self._reached_at = int(state["reached_at"])
        self._tail = _Tail(self._next, 0)
        self._bytes = _size(self._connection)

    @property
    def end(self) -> int:
        """The number of the next change; what is being written is counted already, or not."""
        return self._next

    def attach(self, after: str | None) -> None:
        """Get ready for the changes behind the checkpoint `after`."""
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
    ) -> Iterator[Call | Parked]:
        """Yield what is fired, and then begin to write the changes: `flush` waits for that."""
        seen: list[Call | Parked] = []
        see = seen.append
        for each in fired:
            see(each)
            yield each
        kept = _of_tables(changes)
        self._start(_block(kept, _lines(kept, seen)) if kept else None, position)

    def flush(self) -> None:
        """Return when what was recorded is in the file, or has failed: that is logged."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Write what was recorded, and close the file. Safe to call twice."""
        self.flush()
        self._writer.shutdown()
        self._connection.close()

    # --- In the thread --------------------------------------------------------------------------------------

    def _start(self, block: _Block | None, position: str) -> None:
        is_tidy = monotonic() - self._tidied_at < _TIDY_EVERY
        if block is None and position == self._position and is_tidy:
            return
        self.flush()
        self._position = position
        self._pending = self._writer.submit(self._write, block, position)

    def _write(self, block: _Block | None, position: str) -> None:
        now = monotonic()
        if self._failed_at is not None and now - self._failed_at < _AGAIN_AFTER:
            self._is_continuous = self._is_continuous and block is None
            return
        before = self._next, self._tail, self._bytes, self._is_continuous, self._is_attaching
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._write_all(block, position, now)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._next, self._tail, self._bytes, self._is_continuous, self._is_attaching = before
            self._give_up(error, now, lost=block is not None)
        else:
            if self._failed_at is not None:
                log.info("journal_works_again")
            self._failed_at = None

    def _give_up(self, error: sqlite3.Error, now: float, *, lost: bool) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()
        if lost:
            self._is_continuous = False
        if self._failed_at is None:
            log.error(
                "journal_failed",
                path=str(self.path),
                error=str(error),
                hint="The stream goes on; what is not written is a gap of the journal. Make room on the disk of "
                "CDC_JOURNAL, or lower CDC_JOURNAL_SIZE.",
            )
        self._failed_at = now

    def _write_all(self, block: _Block | None, position: str, now: float) -> None:
        if block is not None:
            if self._is_attaching and self._cut_at(block):
                self._is_continuous = True
            self._is_attaching = False
            if not self._is_continuous:
                self._note_gap(block)
            self._insert(block, position)
        elif not self._is_continuous:  # only a change will show how much is missing
            self._connection.execute(
                "INSERT OR IGNORE INTO state VALUES ('open_gap', ?)", (str(self._reached_at),)
            )
        self._reached_at = _now() if block is None else block.newest  # it may be far behind
        self._reached = [*self._reached, position][-_REMEMBERED:]
        self._set("next", str(self._next))
        self._set("reached", json.dumps(self._reached))
        self._set("reached_at", str(self._reached_at))
        if now - self._tidied_at >= _TIDY_EVERY or self._bytes > self._max_bytes:
            self._tidied_at = now
            self._drop_oldest()

    def _insert(self, block: _Block, position: str) -> None:
        data = self._zstd.pack(block.lines)
        tables = json.dumps(sorted(block.tables))
        if self._next == 1:
            since = int(
                _state(self._connection)["since"]
            )  # when the file was made: nothing was committed since
            self._set("since", str(min(block.oldest, since)))
        row = self._next, len(block.lines), block.oldest, block.newest, position, tables, data
        self._connection.execute("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._bytes += len(data) + _ROW_OVERHEAD
        self._next += len(block.lines)
        if len(block.lines) >= _LARGE:
            self._pack_tail()
            self._tail = _Tail(self._next, 0)
            return
        self._tail = _Tail(self._tail.first, self._tail.changes + len(block.lines))
        if self._tail.changes >= _PACKED:
            self._pack_tail()
            self._tail = _Tail(self._next, 0)

    def _pack_tail(self) -> None:
        """Make one block of the small ones."""
        first, count = self._tail
        rows = self._connection.execute(
            "SELECT count, oldest, newest, position, tables, data FROM block WHERE first >= ? AND first < ?"
            " ORDER BY first",
            (first, first + count),
        ).fetchall()
        if len(rows) < 2:
            return
        lines = [line for row in rows for line in self._zstd.unpack(row[5])]
        tables = json.dumps(sorted({name for row in rows for name in json.loads(row[4])}))
        data = self._zstd.pack(lines)
        self._connection.execute("DELETE FROM block WHERE first >= ? AND first < ?", (first, first + count))
        times = min(row[1] for row in rows), max(row[2] for row in rows)
        self._connection.execute(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?)",
            (first, count, *times, rows[-1][3], tables, data),
        )
        self._bytes += len(data) + _ROW_OVERHEAD - sum(len(row[5]) + _ROW_OVERHEAD for row in rows)

    def _cut_at(self, block: _Block) -> bool:
        """Remove what is here of the block's first change and all behind it; return whether that change is here."""
        at = block.lines[0]
        time = _time_of(json.loads(at[1:] if at[:1] != b"{" else at)["committed_at"])
        rows = self._connection.execute(
            "SELECT first, data FROM block WHERE newest >= ? AND oldest <= ? ORDER BY first DESC",
            (time, time),
        )
        for first, data in rows:
            lines = self._zstd.unpack(data)
            place = next((place for place, line in enumerate(lines) if _id_in(line) == block.first_id), None)
            if place is not None:
                self._cut(first, lines[:place])
                return True
        return False

    def _cut(self, first: int, kept: list[bytes]) -> None:
        run = self._connection.execute
        run("DELETE FROM block WHERE first > ?", (first,))
        if kept:
            data = self._zstd.pack(kept)
            run("UPDATE block SET count = ?, data = ? WHERE first = ?", (len(kept), data, first))
        else:
            run("DELETE FROM block WHERE first = ?", (first,))
        self._next = first + len(kept)
        self._tail = _Tail(self._next, 0)
        run("DELETE FROM gap WHERE first > ?", (self._next,))
        run("DELETE FROM state WHERE name = 'open_gap'")

    def _note_gap(self, block: _Block) -> None:
        opened = _state(self._connection).get("open_gap")
        since = int(opened) if opened is not None else self._reached_at
        until = max(since, block.oldest)
        self._connection.execute("INSERT INTO gap VALUES (?, ?, ?)", (self._next, since, until))
        self._connection.execute("DELETE FROM state WHERE name = 'open_gap'")
        self._is_continuous = True
        log.warning("journal_gap", since=_shown(since), until=_shown(until))

    def _drop_oldest(self) -> None:
        """Drop what is too old, or too much."""
        too_old = _micros(datetime.now(UTC) - self._max_age)
        rows = self._connection.execute("SELECT first, count, newest, length(data) FROM block ORDER BY first")
        dropped = None
        for first, count, newest, length in rows.fetchall():
            if newest >= too_old and self._bytes <= self._max_bytes:
                break
            dropped = first + count, newest
            self._bytes -= length + _ROW_OVERHEAD
        if dropped is not None:
            self._connection.execute("DELETE FROM block WHERE first < ?", (dropped[0],))
            self._connection.execute("DELETE FROM gap WHERE first <= ?", (dropped[0],))
            self._set("since", str(dropped[1] + 1))
            self._tail = _Tail(max(self._tail.first, dropped[0]), 0)

    def _set(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))


def _of_tables(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes without enqueued tasks, which are no changes."""
    if all(event != _ENQUEUED for _, _, event in set(map(_KIND, changes))):
        return changes
    return [each for each in changes if each.kind[2] != _ENQUEUED]


def _lines(changes: Sequence[Change], fired: Sequence[Call | Parked]) -> list[bytes]:
    """Return the changes as JSON. What a route has rendered already is not rendered again."""
    routes = dict(zip(map(id, map(_ROUTE, fired)), map(_ROUTE, fired), strict=True)).values()
    whole = {id(route) for route in routes if _is_whole(route)}
    if len(routes) == len(whole) == 1 and _is_one_each(fired, changes):
        return list(map(_ARGUMENTS, fired))
    calls = (each for each in fired if id(each[0]) in whole and isinstance(each, Call)) if whole else ()
    rendered = {id(each.change): each.arguments for each in calls}
    return [rendered.get(id(change)) or _rendered(change) for change in changes]


def _is_one_each(fired: Sequence[Call | Parked], changes: Sequence[Change]) -> bool:
    """Return whether each change has fired one call: it is mostly so, and then nothing is done for each row."""
    is_alike = len(fired) == len(changes) and set(map(type, fired)) == {Call}
    return is_alike and all(map(is_, map(_CHANGE, fired), changes))


def _is_whole(route: Route) -> bool:
    """Return whether its task gets the change as it is."""
    return route.args is None and route.columns is None


def _block(changes: Sequence[Change], lines: list[bytes]) -> _Block:
    heads = _one_of_each_transaction(changes)
    if any(each.is_muted for each in heads):
        pairs = zip(changes, lines, strict=True)
        lines = [_MUTED + line if change.is_muted else line for change, line in pairs]
    times = [each.committed_at for each in heads]
    tables = {f"{schema}.{table}" for schema, table, _ in set(map(_KIND, changes))}
    return _Block(lines, _micros(min(times)), _micros(max(times)), tables, changes[0].stamp[0])


_ROUTE: Final = itemgetter(0)  # of a Call, or of what is parked
_CHANGE: Final = itemgetter(1)
_ARGUMENTS: Final = itemgetter(2)
_KIND: Final = attrgetter("kind")
_TRANSACTION: Final = attrgetter("commit")


def _one_of_each_transaction(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the first change of each transaction: all of one have the same time, and are muted or not."""
    if not isinstance(changes[0], LoggedChange):
        return changes
    return [next(alike) for _, alike in groupby(changes, key=_TRANSACTION)]


def _rendered(change: Change) -> bytes:
    try:
        return change.to_json()
    except Exception:  # noqa: BLE001 - for any reason: its place is kept
        schema, table, event = change.kind
        return (
            _UNREADABLE
            + json.dumps(
                {
                    "id": change.id,
                    "schema": schema,
                    "table": table,
                    "event": event,
                    "before": None,
                    "after": None,
                    "unavailable": [],
                    "position": change.position,
                    "committed_at": change.committed_at.isoformat(timespec="microseconds"),
                }
            ).encode()
        )


class _Wanted(NamedTuple):
    selection: Selection
    pattern: re.Pattern[bytes] | None  # in each line of them; None: it has to be parsed to know
    end: int  # the number behind the last one


class JournalReader:
    """Reads a journal, also while a listener writes it; may be used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raise JournalError if there is none, MissingExtraError."""
        check_extra("journal")
        if not path.exists():
            raise JournalError(
                f"There is no journal {path}.",
                hint="Set CDC_JOURNAL for the listener, and run this command where the listener runs, with the same "
                "CDC_JOURNAL and CDC_NAME.",
                code="journal_missing",
            )
        self._path = path
        self._zstd = _Zstd()

    def summary(self) -> Summary:
        """Return what is in it. Raises JournalError."""
        with closing(self._open()) as connection, _readable(self._path):
            connection.execute("BEGIN")
            state = _state(connection)
            (first,) = connection.execute("SELECT min(first) FROM block").fetchone()
            size = _size(connection)
            gaps = connection.execute("SELECT since, until FROM gap ORDER BY first").fetchall()
            if "open_gap" in state:
                gaps.append((int(state["open_gap"]), _now()))
        end = int(state["next"])
        return Summary(
            id=state["id"],
            since=_time(int(state["since"])),
            first=end if first is None else first,
            end=end,
            bytes=size,
            gaps=tuple(Gap(since=_time(begin), until=_time(until)) for begin, until in gaps),
        )

    def changes(
        self, selection: Selection, *, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, JournalledChange | None]]:
        """Yield the changes from number `start` on and below `end`, each with the number behind it.

        After each block comes that number without a change: how far it was read. Raises JournalError.
        """
        wanted = _Wanted(selection, _pattern(selection.row), end=_BEYOND if end is None else end)
        while blocks := self._blocks(wanted, start):
            for first, count, tables, data in blocks:
                if not selection.tables or set(json.loads(tables)) & set(selection.tables):
                    yield from self._in_block(first, data, wanted, start)
                start = first + count
                yield start, None

    def _blocks(self, wanted: _Wanted, start: int) -> list[Any]:
        with closing(self._open()) as connection, _readable(self._path):
            return connection.execute(
                # In the order of the table, not by the index of times: + keeps SQLite from that.
                "SELECT first, count, tables, data FROM block"
                " WHERE first >= (SELECT coalesce(max(first), 0) FROM block WHERE first <= ?)"
                " AND first + count > ? AND first < ? AND +newest >= ? AND +oldest < ? ORDER BY first LIMIT 20",
                (start, start, wanted.end, *_bounds(wanted.selection)),
            ).fetchall()

    def _in_block(
        self, first: int, data: bytes, wanted: _Wanted, start: int
    ) -> Iterator[tuple[int, JournalledChange]]:
        text, pattern = self._zstd.text(data), wanted.pattern
        if pattern is not None and not pattern.search(text):
            return
        lines = text.split(_BETWEEN)
        for number, line in enumerate(lines, first):
            if not start <= number < wanted.end or (pattern is not None and not pattern.search(line)):
                continue
            place = number - first + 1
            following = lines[place] if place < len(lines) else self._first_line(number + 1)
            change = _parsed(line, is_last=following is None or _transaction(line) != _transaction(following))
            if wanted.selection.has(change):
                yield number + 1, change

    def _first_line(self, number: int) -> bytes | None:
        """Return the first line of the block that begins with this number; None if there is none."""
        with closing(self._open()) as connection, _readable(self._path):
            found = connection.execute("SELECT data FROM block WHERE first = ?", (number,)).fetchone()
        return None if found is None else self._zstd.unpack(found[0])[0]

    def _open(self) -> sqlite3.Connection:
        with _readable(self._path):
            return sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )


_BEYOND: Final = 1 << 62


class _readable:  # noqa: N801 - a context manager
    """Raise JournalError for what SQLite raises."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error | KeyError):
            raise JournalError(
                f"The journal {self._path} cannot be read: {error}.",
                hint="Look at the listener's log for journal_failed, and at the rights of the directory.",
            ) from error


def _bounds(selection: Selection) -> tuple[int, int]:
    since, until = selection.since, selection.until
    return 0 if since is None else _micros(since), _BEYOND if until is None else _micros(until)


_PLAIN: Final = re.compile(r"[ !#-\[\]-~]+")  # stands in JSON as it is


def _pattern(row: Sequence[tuple[str, str]]) -> re.Pattern[bytes] | None:
    """Return what a line of such a row has in it; None: the lines have to be parsed to know."""
    plain = [(name, value) for name, value in row if _PLAIN.fullmatch(name) and _PLAIN.fullmatch(value)]
    if not plain:
        return None
    name, value = plain[0]
    return re.compile(rb'"%b": ?"?%b"?[,}]' % (re.escape(name.encode()), re.escape(value.encode())))


def _parsed(line: bytes, *, is_last: bool) -> JournalledChange:
    """Parse a change; `is_last` of its transaction, which only the line behind it shows."""
    marks = line[: line.index(b"{")]
    message = {**json.loads(line[len(marks) :]), "is_last": is_last}
    change = cast("JournalledChange", JournalledChange.from_message(message))
    if not marks:
        return change
    return replace(change, muted=_MUTED in marks, is_unreadable=_UNREADABLE in marks)


def _id_in(line: bytes) -> bytes:
    start = line.index(b'"id":') + 5
    opening = line.index(b'"', start)
    return line[opening + 1 : line.index(b'"', opening + 1)]


def _transaction(line: bytes) -> bytes:
    """Return what the ids of the line's transaction begin with."""
    return _id_in(line).rpartition(b"-")[0]


class _Zstd:
    """Blocks of lines, compressed."""

    def __init__(self) -> None:
        from zstandard import ZstdCompressor, ZstdDecompressor

        self._compress = ZstdCompressor(level=1, write_checksum=True).compress
        self._decompress = ZstdDecompressor().decompress

    def pack(self, lines: Iterable[bytes]) -> bytes:
        return self._compress(_BETWEEN.join(lines))

    def text(self, data: bytes) -> bytes:
        return self._decompress(data)

    def unpack(self, data: bytes) -> list[bytes]:
        return self.text(data).split(_BETWEEN)


def _size(connection: sqlite3.Connection) -> int:
    count, size = connection.execute("SELECT count(*), coalesce(sum(length(data)), 0) FROM block").fetchone()
    return int(size) + int(count) * _ROW_OVERHEAD


def _state(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM state").fetchall())


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _now() -> int:
    return _micros(datetime.now(UTC))


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _time_of(text: str) -> int:
    return _micros(datetime.fromisoformat(text))


def _shown(micros: int) -> str:
    return _time(micros).isoformat()
