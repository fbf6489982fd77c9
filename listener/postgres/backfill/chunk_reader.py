"""Reads chunks of rows in its own session and thread, each between two marks in the log.

The marks are transactional logical messages: their commits have a position and a time in the log. The lower mark is
committed first. Then all transactions that were writing at that moment end. Then the rows are read, then the upper mark
is committed. `docs/design.md`, "How a read gets its place in the stream", has the reasoning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple

import psycopg2
from psycopg2.sql import SQL, Composable, Identifier

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import MESSAGE_PREFIX
from listener.core.backfill import BackfillRefusedError, ChunkRequest, Key, check_where
from listener.core.chunk_thread import ChunkThread
from listener.core.source import SourceError, SourceLostError
from listener.postgres.backfill.table_key import ReadableTable, find_table
from listener.postgres.client.connection import Connection, execute, fetch, translated
from listener.postgres.codec.tuple_data import Row

__all__ = ["ChunkReader", "FoundRows", "TableColumn"]

_UNFINISHED_EVERY: Final = (
    0.001,
    0.2,
)  # seconds between two checks of open transactions: the first, the longest


class TableColumn(NamedTuple):
    """A column that the stream sends."""

    name: str
    type_oid: int


class FoundRows(NamedTuple):
    """The result of a chunk's SELECT."""

    table: ReadableTable
    columns: tuple[TableColumn, ...]
    rows: list[Row]  # server text, as in the log
    is_end: bool
    last: Key | None  # of the last row


class ChunkReader(ChunkThread[tuple[str, ChunkRequest], FoundRows]):
    """Reads chunks between two marks; `found` is set before the upper mark is written."""

    def __init__(self, connect: Callable[[], Connection], *, publication: str | None) -> None:
        """`connect` opens an ordinary session; `publication` defines the columns that are sent, None: all."""
        super().__init__()
        self._connect = connect
        self._publication = publication
        self._session: Connection | None = None

    def _interrupt(self) -> None:
        if (session := self._session) is not None:
            with suppress(psycopg2.Error):
                session.cancel()

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _read(self, work: tuple[str, ChunkRequest]) -> None:
        token, request = work
        check_where(request.where)
        session = self._open()
        table = find_table(session, (request.schema, request.table), self._publication)
        _mark(session, token, "low")
        self._wait_for_writers(session)
        self.found = self._select(session, table, request)
        _mark(session, token, "high")

    def _open(self) -> Connection:
        if self._session is None:
            self._session = session = self._connect()
            if session.info.parameter_status("server_encoding") == "SQL_ASCII":
                with translated(session):
                    session.set_client_encoding("SQL_ASCII")  # unconverted text, as in the log
            # The upper mark waits for the disk, because the server sends only what is on disk, but not for standbys.
            execute(session, "SET synchronous_commit = local")
            execute(session, "SET row_security = off")  # an error instead of rows that are silently left out
        return self._session

    def _wait_for_writers(self, session: Connection) -> None:
        """Return when all transactions that had written something and were open after the lower mark have ended."""
        open_now = _open_transactions(session)
        pause, longest = _UNFINISHED_EVERY
        while open_now:
            if self._is_closed.wait(pause):
                raise SourceLostError("The listener is closing.")
            open_now &= _open_transactions(session)
            pause = min(2 * pause, longest)

    def _select(self, session: Connection, table: ReadableTable, request: ChunkRequest) -> FoundRows:
        """Read the rows. The lock keeps the columns unchanged until all rows are read."""
        execute(
            session,
            SQL("BEGIN READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE").format(table.source),
        )
        try:
            wanted = {"table": table.oid, "publication": self._publication}
            columns = tuple(TableColumn(*each) for each in fetch(session, _COLUMNS, wanted))
            _check_sent(table, columns)
            rows = _Rows(request.max_bytes)
            with _without_values(), translated(session), session.cursor() as cursor:
                cursor.copy_expert(_statement(session, table, columns, request), rows)
        finally:
            if not session.closed:
                with suppress(CDCError):
                    execute(session, "ROLLBACK")
        key = _key_of(table, columns)
        return FoundRows(
            table,
            columns,
            rows.kept,
            is_end=rows.count < request.limit and not rows.is_full,
            last=key(rows.kept[-1]) if rows.kept else None,
        )


@contextmanager
def _without_values() -> Iterator[None]:
    """Raise an error about a row without its values, which the server's message contains."""
    try:
        yield
    except SourceError as error:
        if not isinstance(error.__cause__, psycopg2.DataError):
            raise
        raise BackfillRefusedError(
            f"PostgreSQL cannot evaluate the condition for a row: {type(error.__cause__).__name__} "
            f"(SQLSTATE {error.__cause__.pgcode}).",
            hint="Correct the condition, or the row, and: python -m listener backfills resume ID",
            code="backfill_where",
        ) from None


def _check_sent(table: ReadableTable, columns: Sequence[TableColumn]) -> None:
    """Raise BackfillRefusedError if the stream does not send the key: then it is unknown which rows it changes."""
    missing = sorted(set(table.key) - {column.name for column in columns})
    if missing:
        raise BackfillRefusedError(
            f"The stream does not send {', '.join(missing)}, the key by which {'.'.join(table.name)} is read.",
            hint="Let a route of the table use it (columns=[…]), or leave CDC_COLUMN_LISTS out.",
            code="backfill_no_key",
        )


def _mark(session: Connection, token: str, end: str) -> None:
    content = json.dumps({"backfill": token, "mark": end})
    execute(session, "SELECT pg_logical_emit_message(true, %s, %s)", [MESSAGE_PREFIX, content])


def _open_transactions(session: Connection) -> set[str]:
    """Return the transactions that are in progress and have written something."""
    ((open_now,),) = fetch(session, "SELECT array(SELECT pg_snapshot_xip(pg_current_snapshot())::text)")
    return set(open_now)


def _statement(
    session: Connection, table: ReadableTable, columns: Sequence[TableColumn], request: ChunkRequest
) -> bytes:
    """Return the COPY: its text is that of the log, because both come from the types' output functions."""
    codec = "utf-8"

    def encoded(part: Composable) -> bytes:
        return part.as_string(session).encode(codec, "surrogateescape")

    names = SQL(", ").join(Identifier(column.name) for column in columns)
    where = b"true" if request.where is None else b"(%b\n)" % request.where.encode()
    after = b""
    if request.after is not None:
        values = b", ".join(map(_literal, request.after))
        after = b" AND (%b) > (%b)" % (encoded(table.keys), values)
    return b"COPY (SELECT %b FROM %b WHERE %b%b ORDER BY %b LIMIT %d) TO STDOUT" % (
        encoded(names), encoded(table.source), where, after, encoded(table.keys), request.limit,
    )  # fmt: skip


def _literal(value: str) -> bytes:
    """Return a literal without a type: it gets the type of the column in the comparison."""
    return b"'%b'" % value.encode("utf-8", "surrogateescape").replace(b"'", b"''")


def _key_of(table: ReadableTable, columns: Sequence[TableColumn]) -> Callable[[Row], Key]:
    places = [[column.name for column in columns].index(name) for name in table.key]

    def key(row: Row) -> Key:
        values: list[Any] = [row[place] for place in places]
        return tuple(value.decode("utf-8", "surrogateescape") for value in values)

    return key


class _Rows:
    """Takes the lines of COPY's text format, up to a number of bytes; at least one row."""

    def __init__(self, max_bytes: int) -> None:
        self.kept: list[Row] = []
        self.count = 0
        self._left = max_bytes

    @property
    def is_full(self) -> bool:
        return self._left < 0

    def write(self, line: bytes) -> int:
        self.count += 1
        if self._left >= 0:
            self._left -= len(line)
            self.kept.append(split_line(line))
        return len(line)


def split_line(line: bytes) -> Row:
    r"""Return the values of a line of COPY's text format: \N is NULL, and a backslash escapes."""
    fields = line[:-1].split(b"\t")
    if b"\\" not in line:
        return fields
    return [
        None if field == b"\\N" else _ESCAPE.sub(_unescaped, field) if b"\\" in field else field
        for field in fields
    ]


_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


@lru_cache(maxsize=256)
def _letter(letter: bytes) -> bytes:
    return _ESCAPED.get(letter, letter)


def _unescaped(match: re.Match[bytes]) -> bytes:
    return _letter(match[1])


# Those that the stream sends. A generated column is sent if it is stored and published (version 18);
# wal2json always sends stored ones.
_COLUMNS: Final = """
SELECT a.attname::text, a.atttypid::bigint
FROM pg_attribute a LEFT JOIN pg_publication p ON p.pubname = %(publication)s
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = a.attrelid
WHERE a.attrelid = %(table)s AND a.attnum > 0 AND NOT a.attisdropped
  AND (a.attgenerated = ''
       OR a.attgenerated = 's' AND (%(publication)s IS NULL OR to_jsonb(p) ->> 'pubgencols' = 's'))
  AND (jsonb_typeof(to_jsonb(r) -> 'prattrs') IS DISTINCT FROM 'array'
       OR to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum))
ORDER BY a.attnum
"""
