"""Reads chunks of rows in its own session and thread, and finds the log positions around each.

This needs only the SELECT privilege. `docs/design.md`, "How a read gets its place in the stream", has the reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from time import monotonic
from typing import Any, Final, NamedTuple

import pymysql
from pymysql.cursors import SSCursor

from cdc_tasks.errors import CDCError
from listener.core.backfill import BackfillRefusedError, ChunkRequest, Key, check_where
from listener.core.chunk_thread import ChunkThread
from listener.core.source import SourceError, SourceLostError
from listener.core.wakeup import Wakeup
from listener.mysql.backfill.readable_table import (
    ReadableTable,
    check_right,
    chunk_statement,
    find_table,
    read_columns,
    refused_condition,
)
from listener.mysql.charsets import Charsets, Decode
from listener.mysql.client.connection import Connection, Session, execute, fetch, translated
from listener.mysql.client.server import Server, current_position, prepared_names
from listener.mysql.codec.table import Kind, Row
from listener.mysql.errors import setting
from listener.mysql.log.gtid import MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["ChunkReader", "FoundRows", "ReadWork"]

_LOOK_EVERY: Final = (
    0.001,
    0.2,
)  # seconds between two checks of what is not visible yet: the first, the longest
_LONGEST: Final = 30.0  # seconds until the reason for the wait is reported
_QUICK: Final = 0.02  # seconds in which the logged transactions usually become visible
_KEY_KEPT: Final = 5.0  # seconds
_NOW: Final = "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)"
_DEFINITION_CHANGED: Final = 1412
_CONDITION: Final = (
    1365,
    1366,
    1292,
    1690,
    1411,
    3141,
    3143,
)  # of a value: division, conversion, range, JSON


class ReadWork(NamedTuple):
    """A chunk to read, and what the stream has sent before the request."""

    request: ChunkRequest
    gtids: str | None  # MySQL: of the transactions read so far, including the current one
    committed: frozenset[str] = frozenset()  # MariaDB: names of XA transactions, as in the log


class FoundRows(NamedTuple):
    """The result of a chunk's SELECT."""

    table: ReadableTable
    kind: Kind
    rows: list[Row]  # server text; the key's columns are repeated at the end
    is_end: bool
    last: Key | None  # of the last row
    high: BinlogPosition  # everything that the rows show is before this position
    at: int  # when they were read, in microseconds since 1970, by the server's clock


class ChunkReader(ChunkThread[ReadWork, FoundRows]):
    """Reads chunks; sets `done` when `found` or `error` is set."""

    def __init__(self, connect: Callable[[], Connection[Any]], server: Server) -> None:
        super().__init__()
        self._connect = connect
        self._server = server
        self._session: Connection[Any] | None = None
        self._session_id = 0  # the server's
        self._charsets: Charsets | None = None
        self._of_charsets = Session(connect)
        self._compiled = lru_cache(maxsize=10)(self._compile)
        self._known: ReadableTable | None = None
        self._known_until = 0.0
        self._now = 0  # by the server's clock, in microseconds since 1970
        self.done = Wakeup()

    def start(self, work: ReadWork) -> None:
        """Start to read."""
        self.done.clear()
        super().start(work)

    def _ended(self) -> None:
        self.done.set()

    def _interrupt(self) -> None:
        session = self._session
        if session is not None and not self.done.is_set:
            with suppress(CDCError), closing(self._connect()) as other:
                execute(other, f"KILL {self._session_id}")

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.open:
            with suppress(OSError, pymysql.Error):
                session.close()
        self._of_charsets.close()

    def _read(self, work: ReadWork) -> None:
        check_where(work.request.where)
        session = self._open()
        if self._server.is_mariadb:
            self._wait_for_second_phases(session, work.committed)
            self._begin_when_visible(session)
        else:
            self._wait_for_gtids(session, work.gtids)
            self._begin(session)
        try:
            self.found = self._select(session, work.request)
        finally:
            if session.open:
                execute(session, "ROLLBACK")

    def _open(self) -> Connection[Any]:
        if self._session is None:
            session = self._connect()
            ((self._session_id,),) = fetch(session, "SELECT CONNECTION_ID()")
            self._session = session
            execute(session, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            # The column's own bytes, as in the log. Everything else queried here is ASCII or UTF-8.
            execute(session, "SET character_set_results = NULL")
        return self._session

    def _begin(self, session: Connection[Any]) -> None:
        execute(session, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")

    # --- What the stream has sent has to be visible -------------------------------------------------------

    def _wait_for_gtids(self, session: Connection[Any], gtids: str | None) -> None:
        """Return when the server has committed what the stream has sent: MySQL adds a GTID after that."""
        if gtids is None:
            raise _without_gtids()
        wanted = MySQLGTIDs(gtids)
        for is_last in self._looks():
            ((mode, executed, self._now),) = fetch(
                session, f"SELECT @@GLOBAL.gtid_mode, @@GLOBAL.gtid_executed, {_NOW}"
            )
            if mode != "ON":
                raise _without_gtids()
            missing = wanted.minus(MySQLGTIDs(str(executed)))
            if not missing:
                return
            if is_last:
                raise _still_open(str(missing))

    def _wait_for_second_phases(self, session: Connection[Any], committed: frozenset[str]) -> None:
        """Return when none of these XA transactions is prepared any more in MariaDB.

        It logs an XA COMMIT, and the storage engine commits slightly later; a snapshot's position covers it by then.
        """
        if not committed:
            return
        for is_last in self._looks():
            missing = committed & prepared_names(fetch(session, "XA RECOVER"))
            if not missing:
                return
            if is_last:
                raise _still_open(f"XA COMMIT {min(missing)}")

    def _begin_when_visible(self, session: Connection[Any]) -> None:
        """Begin a transaction that sees the whole current log: MariaDB reports the position."""
        wanted = current_position(session, self._server, with_gtids=False)
        ((self._now,),) = fetch(session, f"SELECT {_NOW}")
        began = monotonic()
        for is_last in self._looks():
            self._begin(session)
            seen = _snapshot(session)
            is_slow = monotonic() - began > _QUICK
            if seen >= wanted or (is_slow and not _has_transaction(session, seen, wanted)):
                return
            execute(session, "ROLLBACK")
            if is_last:
                raise _still_open(f"{wanted.file}:{wanted.offset}")

    def _looks(self) -> Iterator[bool]:
        """Yield at growing intervals, True the last time. Raise SourceLostError if the listener ends."""
        pause, longest = _LOOK_EVERY
        until = monotonic() + _LONGEST
        while True:
            is_last = monotonic() >= until
            yield is_last
            if is_last or self._is_closed.wait(pause):
                raise SourceLostError("The listener is closing.")
            pause = min(2 * pause, longest)

    # --- The rows -----------------------------------------------------------------------------------------

    def _select(self, session: Connection[Any], request: ChunkRequest) -> FoundRows:
        """Read the rows. The transaction keeps the columns unchanged until all rows are read."""
        high = current_position(session, self._server, with_gtids=False)
        with _retried_after_definition():
            table = self._table(session, (request.schema, request.table))
            kind = self._compiled(table)
            statement = chunk_statement(table, where=request.where, after=request.after, limit=request.limit)
            rows, is_full = self._fetch(session, statement, request)
        return FoundRows(
            table=table,
            kind=kind,
            rows=rows,
            is_end=len(rows) < request.limit and not is_full,
            last=table.key_of(rows[-1]) if rows else None,
            high=high,
            at=self._now,
        )

    def _table(self, session: Connection[Any], name: tuple[str, str]) -> ReadableTable:
        """Return the table. Its columns are looked up for each chunk, its key from time to time."""
        known, now = self._known, monotonic()
        if known is not None and (known.schema, known.name) == name and now < self._known_until:
            check_right(session, name)
            if read_columns(session, name, mariadb=self._server.is_mariadb) == known.columns:
                return known
        self._known = known = find_table(session, name, mariadb=self._server.is_mariadb)
        self._known_until = now + _KEY_KEPT
        return known

    def _fetch(
        self, session: Connection[Any], statement: str, request: ChunkRequest
    ) -> tuple[list[Row], bool]:
        """Return the rows, at least one, and whether there are more bytes than requested."""
        kept: list[Row] = []
        left = request.max_bytes
        with (
            _texts_as_they_are(session),
            _explained(request.where),
            translated(session),
            SSCursor(session) as cursor,
        ):
            cursor.execute(statement)
            for row in cursor.fetchall_unbuffered():
                if left < 0:
                    return kept, True  # the cursor reads the rest
                left -= sum(len(value) for value in row if value is not None)
                kept.append(row)
        return kept, False

    def _compile(self, table: ReadableTable) -> Kind:
        return Kind(table.compiled(self._decoder), "read")

    def _decoder(self, charset: str) -> Decode:
        if self._charsets is None:
            self._charsets = Charsets(self._of_charsets)
        return self._charsets.decoder_of(charset)


def _snapshot(session: Connection[Any]) -> BinlogPosition:
    """Return the log position up to which the transaction sees changes."""
    found = dict(fetch(session, "SHOW STATUS LIKE 'binlog_snapshot_%'"))
    status = {str(name).lower(): str(value) for name, value in found.items()}
    return BinlogPosition(file=status["binlog_snapshot_file"], offset=int(status["binlog_snapshot_position"]))


def _has_transaction(session: Connection[Any], first: BinlogPosition, end: BinlogPosition) -> bool:
    """Return whether the log has a transaction between two positions; the server's own notes do not count."""
    if first.file != end.file:
        return True
    events = fetch(session, f"SHOW BINLOG EVENTS IN '{first.file}' FROM {first.offset} LIMIT 20")
    between = [event for event in events if int(event[1]) < end.offset]
    return len(between) == 20 or any(event[2] == "Gtid" for event in between)


@contextmanager
def _texts_as_they_are(session: Connection[Any]) -> Iterator[None]:
    """Let the driver return the bytes that the server sends."""
    session.use_unicode, decoders, session.decoders = False, session.decoders, {}
    try:
        yield
    finally:
        session.use_unicode, session.decoders = True, decoders


@contextmanager
def _explained(where: str | None) -> Iterator[None]:
    """Raise an error about the condition, or one about a row without its values."""
    try:
        yield
    except SourceError as error:
        number = getattr(error.__cause__, "args", (0,))[0]
        if where is None or number == _DEFINITION_CHANGED:
            raise
        if number in _CONDITION:
            raise BackfillRefusedError(
                f"The database cannot evaluate the condition for a row (error {number}).",
                hint="Correct the condition, or the row, and: python -m listener backfills resume ID",
                code="backfill_where",
            ) from None
        raise refused_condition(where, error) from error


@contextmanager
def _retried_after_definition() -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        if getattr(error.__cause__, "args", (0,))[0] != _DEFINITION_CHANGED:
            raise
        raise SourceLostError("The table's definition has just changed.") from error


def _still_open(what: str) -> SourceLostError:
    return SourceLostError(
        f"The log has transactions that the database does not show yet: {what}.",
        hint="A replica may have to confirm them (semi-synchronous replication): SHOW STATUS LIKE 'rpl_semi_sync%';",
    )


def _without_gtids() -> BackfillRefusedError:
    return BackfillRefusedError(
        "MySQL without GTIDs does not show which transactions of its log a reader can see.",
        hint=f"Turn them on, step by step: python -m listener check. The last one: "
        f"{setting('gtid_mode', 'ON', mariadb=False)}\nThen: python -m listener backfills resume ID",
        code="backfill_without_gtids",
    )
