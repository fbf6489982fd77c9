"""The events of a binlog to changes: files, transactions, statements. `rows.py` reads the rows.

Sources: MySQL's source documentation, "Binary log event structures"; MariaDB's, "Replication Protocol".
An event of an unknown kind stops the stream, unless the server has marked it as ignorable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NoReturn

import structlog

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.contexts import CONTEXT, ContextError, merged
from listener.core.last_change import note_last
from listener.core.source import GapError, SourceError
from listener.mysql.codec import compressed_events
from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.gtid_event import mariadb_gtid, mysql_gtid, tagged_gtid
from listener.mysql.codec.rows_events import Describe, RowReader
from listener.mysql.codec.transaction_buffer import Spool, TransactionBuffer, xid_of
from listener.mysql.codec.transaction_progress import ALL, Progress
from listener.mysql.codec.values import UNREADABLE
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.log.gtid import MySQLGTIDs
from listener.mysql.log.position import BinlogPosition
from listener.mysql.sql.statements import (
    BACK_TO,
    SAVEPOINT,
    Dialect,
    Effect,
    Query,
    Statement,
    is_begin,
    parse_query,
    read_statement,
    savepoint_name,
)

__all__ = ["Decoder"]

log = structlog.get_logger()

Changes = list[BinlogChange]
Handler = Callable[[bytes, Changes], None]
Selects = Callable[[str, str | None], bool]
"""Return whether a route selects this schema and table; None: any table of the schema."""

_size_and_end = struct.Struct("<II").unpack_from
_end = struct.Struct("<I").unpack_from

_IGNORABLE: Final = 0x80  # a flag: a reader that does not know the event may skip it
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file
_STANDALONE, _PREPARED = 0x01, 0x40  # flags of MariaDB's GTID event
_QUERY, _XID, _TABLE_MAP = 2, 16, 19
_FIRST_COMPRESSED: Final = 166  # of MariaDB's rows events: their size does not limit the number of rows

# Without changes: STOP, INTVAR, RAND, USER_VAR, HEARTBEAT, IGNORABLE, ROWS_QUERY, TRANSACTION_CONTEXT, VIEW_CHANGE,
# HEARTBEAT_V2; MariaDB's ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION (the server decrypts).
_WITHOUT_MEANING: Final = frozenset({3, 5, 13, 14, 27, 28, 29, 36, 37, 41, 160, 161, 163, 164})
_OF_ROWS: Final = frozenset({19, 23, 24, 25, 30, 31, 32, 39, 166, 167, 168, 169, 170, 171})

_UPDATE: Final = "Update cdc-tasks, and report this with the server's version."


class Decoder:
    """Decodes one connection's events, without the changes that `after` covers."""

    def __init__(
        self,
        *,
        mariadb: bool,
        describe: Describe,
        forget: Callable[[bytes], None] = lambda _: None,
        after: BinlogPosition,
        server: str = "",
        accepts_gap_until: BinlogPosition | None = None,
        dialect: Dialect | None = None,
        selects: Selects = lambda _schema, _table: False,
        keeps_muted: bool = False,
    ) -> None:
        """`forget` gets each statement that may change what `describe` knows. `server`: see `Progress`.

        What cannot be read before `accepts_gap_until` is left out, with a log line. `dialect` shows how statements are
        read; None: all text is UTF-8. `keeps_muted`: some route takes muted changes.
        """
        self.inner: Iterator[bytes] | None = None  # events inside the last one: see `leave_inner`
        self.progress = Progress(after, mariadb=mariadb, server=server)
        self.muted_tables: set[tuple[str, str]] = set()  # of which changes were muted since it was cleared
        self._forget_tables = forget
        self._rows = RowReader(describe, self.progress, self._take_mark)
        self._buffer = TransactionBuffer(self.progress)
        self._accepts_gap_until = accepts_gap_until
        self._dialect = dialect or Dialect(mariadb=mariadb)
        self._selects = selects
        self._may_roll_back = mariadb
        self._is_standalone = False  # the transaction is one statement, without an event that ends it
        self._keeps_muted = keeps_muted
        self._muted_before: dict[
            bytes, bool
        ] = {}  # whether changes were muted at the transaction's savepoints
        known = self._make_handlers()
        self._plain_handlers = [known.get(kind, self._unknown) for kind in range(256)]
        known.update(self._make_muted_handlers())
        self._muted_handlers = [known.get(kind, self._unknown) for kind in range(256)]
        self._handlers = self._plain_handlers

    def decode(self, event: bytes, changes: Changes) -> None:
        """Append the changes in one event, which ends with a checksum. Raise SourceError, GapError."""
        try:
            kind = event[4]
            if self._buffer.spool is not None and kind in _OF_ROWS:
                self._buffer.spool.add(event)
                return
            self._handlers[kind](event, changes)
        except UNREADABLE as error:
            self._refuse(_undecodable(error), changes)
        except (SourceError, GapError) as error:
            self._refuse(error, changes)

    def pass_over(self, event: bytes) -> None:
        """Process an event of an unwanted transaction without its rows, so they cannot cause an error."""
        if event[4] in _OF_ROWS:
            if self._buffer.spool is not None:
                self._buffer.spool.add(event)
            return
        with suppress(*UNREADABLE, SourceError, GapError):
            self._handlers[event[4]](event, [])

    def leave_inner(self) -> None:
        """Continue with the next outer event; call it when `inner` is exhausted."""
        self.inner = None

    def close(self) -> None:
        """Delete all data on disk."""
        self._buffer.close()

    @property
    def is_within_transaction(self) -> bool:
        """Whether more changes of the same transaction may come."""
        return self.progress.is_open or self.inner is not None or self._buffer.spool is not None

    @property
    def committed_by_name(self) -> frozenset[str]:
        """The names of the XA transactions whose commit was read last."""
        return self._buffer.committed

    @property
    def needs_end(self) -> bool:
        """Whether the changes may not be published yet, because the last event of the transaction may roll it back.

        MariaDB logs a rolled-back transaction if it created or dropped a temporary table.
        """
        return self._may_roll_back and self.progress.is_open and self.inner is None

    def buffer(self, event: bytes, changes: Changes) -> bool:
        """Keep an event for later, on disk if there are many; return whether it ended the transaction.

        Then the buffered events come next, as `inner`, or the transaction was rolled back. Raises as `decode` does.
        """
        try:
            text = parse_query(event, len(event) - 4).text if event[4] == _QUERY else b""
        except UNREADABLE as error:
            self._refuse(_undecodable(error), changes)
            return False
        if event[4] != _XID and text not in {b"COMMIT", b"ROLLBACK"}:
            self._buffer.add(event, text, changes)
            return False
        spool = self._buffer.take()
        if spool is not None and text != b"ROLLBACK":
            self._replay(spool, event)
            return True
        if spool is not None:
            spool.close()
        self.decode(event, changes)
        return True

    def _make_handlers(self) -> dict[int, Handler]:
        rows = self._rows
        return {
            2: self._query,
            4: self._rotate,
            15: self._format,
            16: self._commit,
            **dict.fromkeys((17, 18), self._hidden),  # LOAD DATA as a statement
            19: rows.table_map,
            26: self._incident,
            **dict.fromkeys((33, 34), self._mysql_gtid),
            35: self._previous_gtids,
            38: self._xa_prepare,
            40: self._payload,
            42: self._tagged_gtid,
            162: self._mariadb_gtid,
            165: self._compressed_query,
            **dict.fromkeys((23, 30, 166, 169), rows.inserted),
            **dict.fromkeys((24, 31, 39, 167, 170), rows.updated),
            **dict.fromkeys((25, 32, 168, 171), rows.deleted),
        }

    def _make_muted_handlers(self) -> dict[int, Handler]:
        muted = self._keep_muted if self._keeps_muted else self._skip_muted
        return {
            **dict.fromkeys(_OF_ROWS - {_TABLE_MAP}, muted),
            **dict.fromkeys((33, 34, 42, 162), self._begin_unmuted),
        }

    def _unknown(self, event: bytes, _changes: Changes) -> None:
        if event[4] not in _WITHOUT_MEANING and not event[17] & _IGNORABLE:
            raise SourceError(f"an event of an unknown kind: {event[4]}", hint=_UPDATE, code="unknown_event")

    def _refuse(self, error: CDCError, changes: Changes) -> None:
        """Raise the error with its position, unless it is in the accepted gap."""
        if self.progress.published_up_to == ALL:
            return
        message = f"The log has at {self.progress.place} {error.message}"
        until = self._accepts_gap_until
        if until is None or not self.progress.here < until:
            raise type(error)(message, hint=f"{error.hint or _UPDATE}\n{ACCEPT_GAP}", code=error.code)
        self.progress.take_back(changes, self.progress.ordinal)  # the rows of the event that were read
        log.error("gap_accepted", gap=message)

    # The file.

    def _rotate(self, event: bytes, changes: Changes) -> None:
        file = event[27:-4].decode()
        self._rows.forget_numbers()
        if event[17] & _ARTIFICIAL:
            self.progress.enter(file)
        else:
            self._abandon(changes)
            self.progress.rotate(file, int.from_bytes(event[19:27], "little"))

    def _format(self, event: bytes, changes: Changes) -> None:
        lengths = event[76:-5]
        if event[75] != 19 or lengths[18] != 8 or lengths[22] not in {0, 8} or lengths[29] not in {0, 10}:
            raise SourceError("events with an unknown layout", hint=_UPDATE, code="unknown_event")
        self._rows.forget_numbers()
        self._abandon(changes)
        self.progress.created(int.from_bytes(event[:4], "little"))

    def _previous_gtids(self, event: bytes, _changes: Changes) -> None:
        self.progress.learn(MySQLGTIDs.decoded(event[19:-4]))

    def _abandon(self, changes: Changes) -> None:
        """Drop a transaction without an end, after a server crash."""
        self._buffer.drop()
        self.progress.abandon(changes)

    # Transactions.

    def _mysql_gtid(self, event: bytes, _changes: Changes) -> None:
        gtid, committed = mysql_gtid(event)
        self._begin(event, gtid, committed, standalone=True)  # unless a BEGIN follows

    def _tagged_gtid(self, event: bytes, _changes: Changes) -> None:
        gtid, committed = tagged_gtid(event)
        self._begin(event, gtid, committed, standalone=True)

    def _mariadb_gtid(self, event: bytes, _changes: Changes) -> None:
        gtid, committed, flags = mariadb_gtid(event)
        self._begin(event, gtid, committed, standalone=bool(flags & _STANDALONE))
        if flags & _PREPARED:
            self._buffer.begin()

    def _begin(self, event: bytes, gtid: str, committed: int, *, standalone: bool) -> None:
        size, end = _size_and_end(event, 9)
        self._is_standalone = standalone
        if self._muted_before:
            self._muted_before.clear()
        self.progress.begin(gtid, end=end, size=size, committed=committed, event=event)

    def _commit(self, event: bytes, changes: Changes) -> None:
        note_last(changes)
        self.progress.finish(_end_of(event))

    def _payload(self, event: bytes, _changes: Changes) -> None:
        self.progress.end_at(_end_of(event))
        self.inner = self._checked(compressed_events.inner_events(event))

    def _checked(self, events: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from events
        except UNREADABLE as error:
            self._refuse(_undecodable(error), [])

    # Statements.

    def _query(self, event: bytes, changes: Changes) -> None:
        if is_begin(event):
            self._is_standalone = False
        else:
            self._judge(parse_query(event, len(event) - 4), event, changes)

    def _compressed_query(self, event: bytes, changes: Changes) -> None:
        at = 32 + int.from_bytes(event[30:32], "little") + event[27] + 1
        plain = compressed_events.uncompress_rest(event, at)
        self._judge(parse_query(plain, len(plain) - 4), event, changes)

    def _judge(self, query: Query, event: bytes, changes: Changes) -> None:
        text, progress = query.text, self.progress
        if text == b"BEGIN":
            self._is_standalone = False
        elif text == b"COMMIT":
            self._commit(event, changes)
        elif text == b"ROLLBACK":
            progress.take_back(changes, 0)
            self._commit(event, changes)
        elif text.startswith(SAVEPOINT):
            savepoint = savepoint_name(text[len(SAVEPOINT) :])
            progress.mark(savepoint)
            self._muted_before[savepoint] = self._is_muted
        elif text.startswith(BACK_TO):
            savepoint = savepoint_name(text[len(BACK_TO) :])
            progress.take_back_to(savepoint, changes)
            self._mute(is_muted=self._muted_before.get(savepoint, False))
        elif text.startswith(b"XA "):
            self._xa(text[3:].decode(errors="replace"), event, changes)
        else:
            self._definition(query, event, changes)

    def _definition(self, query: Query, event: bytes, changes: Changes) -> None:
        """Read a statement that does not end a transaction: mostly DDL, which is its own transaction."""
        self._forget_tables(query.text)
        try:
            self._apply(read_statement(query, self._dialect), changes)
        finally:
            if self._is_standalone:
                self._commit(event, changes)

    def _apply(self, statement: Statement, changes: Changes) -> None:
        if statement.effect is Effect.TRUNCATES:
            ((schema, name),) = statement.tables
            self._rows.truncated(schema, name or "", changes)
        elif statement.effect is Effect.HIDES:
            raise GapError(
                f"a statement that changes rows, logged as a statement ({statement.verb}): its rows are missing.",
                hint=self._as_rows,
                code="logged_as_statement",
            )
        elif statement.effect is Effect.UNKNOWN:
            what = f" ({statement.verb})" if statement.verb else ""
            raise GapError(
                f"a statement of an unknown kind{what}: it may have changed rows, which would be missing.",
                hint=f"{self._as_rows}\nIf it changes no rows: {_UPDATE}",
                code="unknown_statement",
            )
        elif statement.effect is Effect.MOVES and self.progress.published_up_to != ALL:
            self._warn_of_moved_rows(statement)

    def _warn_of_moved_rows(self, statement: Statement) -> None:
        """Log the selected tables to which DDL added or removed rows: these have no changes."""
        moved = [".".join(filter(None, table)) for table in statement.tables if self._selects(*table)]
        if moved:
            log.warning(
                "rows_without_changes", statement=statement.verb, tables=moved, position=self.progress.place
            )

    def _hidden(self, _event: bytes, _changes: Changes) -> NoReturn:
        raise GapError(
            "a statement that changes rows, logged as a statement (LOAD): its rows are missing.",
            hint=self._as_rows,
            code="logged_as_statement",
        )

    @property
    def _as_rows(self) -> str:
        keep = "SET GLOBAL" if self._dialect.mariadb else "SET PERSIST"
        progress = self.progress
        return (
            f"SHOW BINLOG EVENTS IN '{progress.file}' FROM {progress.start} LIMIT 5;   -- shows the statement\n"
            f"{keep} binlog_format = 'ROW';   Then end the sessions that use another format: they keep it."
        )

    def _incident(self, _event: bytes, _changes: Changes) -> NoReturn:
        raise GapError(
            "an incident: the server lost a part of the log.",
            hint="See the server's error log.",
            code="incident",
        )

    # A transaction's marks for its changes.

    def _take_mark(self, says: dict[str, Any]) -> None:
        if isinstance(is_muted := says.get("mute"), bool):
            self._mute(is_muted=is_muted)
        if CONTEXT in says:
            self._say(says[CONTEXT])

    def _say(self, said: Any) -> None:
        """Process the transaction's context: its following changes and tasks carry it."""
        try:
            self.progress.put_into(merged(self.progress.context, said))
        except ContextError as error:
            log.warning("context_ignored", code=error.code, position=self.progress.place)

    @property
    def _is_muted(self) -> bool:
        return self._handlers is self._muted_handlers

    def _mute(self, *, is_muted: bool) -> None:
        self._handlers = self._muted_handlers if is_muted else self._plain_handlers
        if not is_muted:
            self.progress.unmute()
        elif self._keeps_muted:
            self.progress.mute()

    def _begin_unmuted(self, event: bytes, changes: Changes) -> None:
        self._mute(is_muted=False)
        self._plain_handlers[event[4]](event, changes)

    def _skip_muted(self, event: bytes, changes: Changes) -> None:
        """Leave the rows of an event out without reading them, unless they are marks."""
        if self._is_of_marks(event):
            self._plain_handlers[event[4]](event, changes)
        elif event[4] >= _FIRST_COMPRESSED:
            self._plain_handlers[event[4]](event, [])
        else:
            self.progress.advance(self.progress.ordinal + _most_rows(event))

    def _keep_muted(self, event: bytes, changes: Changes) -> None:
        """Read the rows; their ordinals end as if they were left out, so those of later changes stay the same."""
        first = self.progress.ordinal
        is_of_marks = self._is_of_marks(event)
        self._plain_handlers[event[4]](event, changes)
        if event[4] < _FIRST_COMPRESSED and not is_of_marks:
            self.progress.advance(max(self.progress.ordinal, first + _most_rows(event)))

    def _is_of_marks(self, event: bytes) -> bool:
        table = self._rows.table_of(event)
        if table is not None and table.is_selected:
            self.muted_tables.add((table.schema, table.name))
        return table is not None and table.is_marks

    # Transactions in two phases.

    def _xa(self, text: str, event: bytes, changes: Changes) -> None:
        verb, _, name = text.partition(" ")
        if verb == "START":
            self._buffer.begin()
            self._is_standalone = False
        elif verb in {"COMMIT", "ROLLBACK"}:
            spool = self._buffer.resolve(name, commits=verb == "COMMIT")
            if spool is None:
                self._commit(event, changes)
            else:
                self._replay(spool, event)

    def _xa_prepare(self, event: bytes, changes: Changes) -> None:
        name, one_phase = xid_of(event)
        spool = self._buffer.take()
        if spool is None:
            raise SourceError(
                "a prepared transaction whose start is missing.", hint=_UPDATE, code="undecodable"
            )
        if one_phase:
            self._replay(spool, event)
        else:
            self._buffer.prepare(name, spool)
            self._commit(event, changes)

    def _replay(self, spool: Spool, event: bytes) -> None:
        """Decode the buffered events next, as `inner`; the transaction ends with `event`."""
        self.progress.end_at(_end_of(event))
        self._buffer.keep_open(spool)
        self.inner = spool.events()


def _most_rows(event: bytes) -> int:
    """Return a number that the event's rows do not exceed: a row has two bytes or more."""
    return len(event) >> 1


def _undecodable(error: Exception) -> SourceError:
    return SourceError(f"something that cannot be decoded: {error!r}", hint=_UPDATE, code="undecodable")


def _end_of(event: bytes) -> int:
    end: int = _end(event, 13)[0]
    return end
