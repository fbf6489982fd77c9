"""The events of a binlog to changes: transactions, ordinals, tables, and what was published before a restart.

Sources: MySQL's source documentation, "Binary log event structures"; MariaDB's, "Replication Protocol".
An event of a kind that is not known here stops the stream, unless the server marks it as one to be ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

import structlog

from cdc_tasks.errors import CDCError
from listener.monitor import Gap, SourceError
from listener.mysql import compressed
from listener.mysql.change import BinlogChange, Transaction
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.gtid import GTIDSet, MariaDBGTIDs, MySQLGTIDs
from listener.mysql.json_binary import patch
from listener.mysql.position import BinlogPosition
from listener.mysql.prepared import Spool
from listener.mysql.statements import Query, emptied_table, hides_rows, parse_query
from listener.mysql.table import ABSENT, Image, Row, Table
from listener.mysql.table_map import packed_integer

__all__ = ["Decoder", "Describe"]

log = structlog.get_logger()

Describe = Callable[[bytes], Table | None]
"""A TABLE_MAP's body to the table; None for one that nobody watches and whose rows cannot be read.
Raises SourceError for one that is watched."""

_header = Struct("<IBIIIH").unpack_from  # timestamp, type, server_id, size, end position, flags
_mariadb_gtid = Struct("<QIB").unpack_from  # number, domain, flags
_END_OF_TRANSACTION: Final = b"\0\0\0\0\x10" + bytes(14) + compressed.NO_CHECKSUM  # as an XID event ends one

_IGNORABLE: Final = 0x80  # a flag: whoever does not know the event may go on
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file
_PARTIAL_UPDATE: Final = 39
_STANDALONE, _PREPARED = 0x01, 0x40  # flags of MariaDB's GTID event
_DUMMY_TABLE: Final = b"\xff\xff\xff\0\0\0"
_ALL: Final = float("inf")


class Decoder:
    """Decodes one connection's events, leaving out what `after` covers."""

    def __init__(
        self,
        *,
        mariadb: bool,
        describe: Describe,
        after: BinlogPosition,
        accepts_gap_until: BinlogPosition | None = None,
    ) -> None:
        """What cannot be read and stands before `accepts_gap_until` is left out with a word in the log."""
        self.inner: Iterator[bytes] | None = None  # events inside the last one: to be decoded next
        self._describe = describe
        self._accepts_gap_until = accepts_gap_until
        self._after = after
        self._server = after.server
        published = after.gtids if after.published is None else after.published
        self._gtids: GTIDSet | None = _gtid_set(published, mariadb=mariadb)
        self._catching_up = True
        self._file, self._reading = after.file, after.file
        self._offset = after.offset
        self._tables: dict[bytes, Table | None] = {}
        self._described: dict[bytes, Table | None] = {}
        self._sources: dict[bytes, str] = {}  # a server's uuid, as text
        self._prepared: dict[str, tuple[Spool, BinlogPosition, str]] = {}  # XA transactions by their name
        self._spool: Spool | None = None  # of the transaction that is being prepared
        self._replayed: Spool | None = None
        self._open = False
        self._gtid, self._start, self._committed, self._standalone = "", 0, 0, False
        self._ordinal, self._published_up_to = 0, -1.0
        self._transaction: Transaction | None = None
        self._savepoints: dict[bytes, int] = {}
        self._outer_end = 0
        self._handlers = self._make_handlers()

    def decode(self, event: bytes, changes: list[BinlogChange]) -> None:
        """Append the changes in one event, which ends with a checksum; raises SourceError, Gap."""
        handler = self._handlers.get(event[4])
        if handler is not None:
            try:
                handler(event, changes)
            except (ValueError, KeyError, IndexError) as error:
                self._refuse(SourceError(
                    f"The log has something at {self._place} that cannot be decoded: {error!r}.",
                    hint=f"Update cdc-tasks, and report this with the server's version. {ACCEPT_GAP}",
                ))  # fmt: skip
        elif event[4] not in _WITHOUT_MEANING and not event[17] & _IGNORABLE:
            self._refuse(SourceError(
                f"The log has an event at {self._place} of a kind that cannot be decoded: {event[4]}.",
                hint=f"Update cdc-tasks, and report this with the server's version. {ACCEPT_GAP}",
            ))  # fmt: skip

    @property
    def position(self) -> BinlogPosition:
        """Behind the last change that was decoded, or behind what did not concern us."""
        if self._catching_up:
            return self._after
        gtids = None if self._gtids is None else str(self._gtids)
        restart, published = "", None
        if self._prepared and not isinstance(self._gtids, MySQLGTIDs):
            _, oldest, _ = min(self._prepared.values(), key=lambda each: each[1])
            restart, published = f"{oldest.file}:{oldest.offset}", gtids
            gtids = oldest.gtids
        if self._open and self._ordinal:
            return BinlogPosition(
                file=self._reading, offset=self._start, ordinal=self._ordinal - 1, server=self._server,
                gtids=gtids, gtid=self._gtid, restart=restart, published=published,
            )  # fmt: skip
        return BinlogPosition(
            file=self._file, offset=self._offset, server=self._server,
            gtids=gtids, restart=restart, published=published,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of what is kept on disk."""
        for spool in (self._spool, self._replayed, *(each[0] for each in self._prepared.values())):
            if spool is not None:
                spool.close()

    def _replay(self, spool: Spool) -> None:
        self._replayed = spool
        self.inner = _with_end(spool.events())

    def _make_handlers(self) -> dict[int, Callable[[bytes, list[BinlogChange]], None]]:
        return {
            2: self._query,
            4: self._rotate,
            15: self._format,
            16: self._commit,
            17: self._statement,  # BEGIN_LOAD_QUERY
            18: self._statement,  # EXECUTE_LOAD_QUERY
            19: self._table_map,
            26: self._incident,
            33: self._mysql_gtid,
            34: self._mysql_gtid,  # anonymous
            38: self._xa_prepare,
            40: self._payload,
            42: self._tagged_gtid,
            162: self._mariadb_gtid,
            165: self._compressed_query,
            **dict.fromkeys((23, 30, 166, 169), self._inserted),
            **dict.fromkeys((24, 31, 39, 167, 170), self._updated),
            **dict.fromkeys((25, 32, 168, 171), self._deleted),
        }

    # The file.

    def _rotate(self, event: bytes, changes: list[BinlogChange]) -> None:
        self._reading = event[27:-4].decode()
        self._tables.clear()
        if not event[17] & _ARTIFICIAL:
            self._abandon(changes)
            self._file = self._reading
            self._offset = int.from_bytes(event[19:27], "little")

    def _format(self, event: bytes, changes: list[BinlogChange]) -> None:
        lengths = event[76:-5]
        if event[75] != 19 or lengths[18] != 8 or lengths[22] not in {0, 8} or lengths[29] not in {0, 10}:
            raise SourceError("The log's events have a layout that cannot be decoded.")
        self._tables.clear()
        if self._open:
            self._abandon(changes)

    def _abandon(self, changes: list[BinlogChange]) -> None:
        """Forget a transaction that a crash of the server has left without its end."""
        if self._open:
            self._take_back(changes, 0)
            self._open = False

    # Transactions.

    def _mysql_gtid(self, event: bytes, changes: list[BinlogChange]) -> None:
        gtid = ""
        if event[4] == 33:
            source = event[20:36]
            name = self._sources.get(source)
            if name is None:
                text = source.hex()
                name = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
                self._sources[source] = name
            gtid = f"{name}:{int.from_bytes(event[36:44], 'little')}"
        committed = int.from_bytes(event[61:68], "little")
        if committed >> 55:
            committed = int.from_bytes(event[68:75], "little")  # where it was committed first
        self._begin(gtid, event, committed)
        self._standalone = True  # unless a BEGIN follows

    def _tagged_gtid(self, event: bytes, changes: list[BinlogChange]) -> None:
        raise SourceError(
            f"The log has a GTID with a tag at {self._place}, which this version cannot read.",
            hint=f"Commit without tags: SET gtid_next = 'AUTOMATIC'. {ACCEPT_GAP}",
        )

    def _mariadb_gtid(self, event: bytes, changes: list[BinlogChange]) -> None:
        timestamp, _, server, *_ = _header(event)
        number, domain, flags = _mariadb_gtid(event, 19)
        self._begin(f"{domain}-{server}-{number}", event, timestamp * 1_000_000)
        self._standalone = bool(flags & _STANDALONE)
        if flags & _PREPARED:
            self._spool = Spool()

    def _begin(self, gtid: str, event: bytes, committed: int) -> None:
        if self._open:  # the last one had no end of its own
            self._end(self._start)
        end = int.from_bytes(event[13:17], "little")
        self._start = end - int.from_bytes(event[9:13], "little") if end else self._offset
        self._gtid, self._committed = gtid, committed
        self._open, self._standalone = True, False
        self._transaction = None
        self._ordinal, self._outer_end = 0, 0
        self._published_up_to = self._published_before() if self._catching_up else -1

    def _published_before(self) -> float:
        """Return the last ordinal of this transaction that was published before we came."""
        after = self._after
        if self._is_published():
            return _ALL
        self._catching_up = False
        if self._gtids is not None:
            return after.ordinal if after.gtid == self._gtid and after.gtid else -1
        return after.ordinal if (self._reading, self._start) == (after.file, after.offset) else -1

    def _is_published(self) -> bool:
        if self._gtids is not None:
            return self._gtid in self._gtids
        place = BinlogPosition(file=self._reading, offset=self._start, ordinal=self._after.ordinal)
        return place < self._after

    def _commit(self, event: bytes, changes: list[BinlogChange]) -> None:
        self._end(self._outer_end or int.from_bytes(event[13:17], "little") or self._start)

    def _end(self, offset: int) -> None:
        if not self._open:
            return
        self._open = False
        self._savepoints.clear()
        if self._published_up_to == _ALL:
            return
        self._file, self._offset = self._reading, offset
        if self._gtids is not None and self._gtid:
            self._gtids.add(self._gtid)

    @property
    def _current(self) -> Transaction:
        if self._transaction is None:
            self._transaction = Transaction(
                gtid=self._gtid if self._gtids is not None else "",
                file=self._reading,
                offset=self._start,
                committed=self._committed,
                server=self._server,
            )
        return self._transaction

    def _take_back(self, changes: list[BinlogChange], ordinal: int) -> None:
        """Forget the changes from `ordinal` on: the transaction was rolled back so far."""
        while changes and changes[-1].transaction is self._transaction and changes[-1].ordinal >= ordinal:
            changes.pop()
            self._ordinal -= 1
        if self._ordinal > ordinal and self._transaction is not None:
            log.error("rolled_back_after_publishing", position=self._place, changes=self._ordinal - ordinal)

    # Statements.

    def _query(self, event: bytes, changes: list[BinlogChange]) -> None:
        self._judge(parse_query(event, len(event) - 4), event, changes)

    def _compressed_query(self, event: bytes, changes: list[BinlogChange]) -> None:
        at = 32 + int.from_bytes(event[30:32], "little") + event[27] + 1
        plain = compressed.uncompress_rest(event, at)
        self._judge(parse_query(plain, len(plain) - 4), event, changes)

    def _judge(self, query: Query, event: bytes, changes: list[BinlogChange]) -> None:
        text = query.text
        if text == b"BEGIN":
            self._standalone = False
            return
        if text in {b"COMMIT", b"COMMIT /* implicit, from Xid_log_event */"}:
            self._commit(event, changes)
        elif text == b"ROLLBACK":
            self._take_back(changes, 0)
            self._commit(event, changes)
        elif text.startswith(b"SAVEPOINT "):
            self._savepoints[text[10:]] = self._ordinal
        elif text.startswith(b"ROLLBACK TO "):
            self._take_back(changes, self._savepoints.get(text[12:].removeprefix(b"SAVEPOINT "), 0))
        elif text.startswith(b"XA "):
            self._xa(text.decode(errors="replace"), event, changes)
        else:
            self._definition(query, event, changes)

    def _definition(self, query: Query, event: bytes, changes: list[BinlogChange]) -> None:
        """Treat what is no row and no end of a transaction: mostly DDL, a transaction of its own."""
        emptied = emptied_table(query)
        if emptied:
            self._truncated(*emptied, changes)
        elif hides_rows(query):
            self._statement(event, changes)
        if self._standalone:
            self._commit(event, changes)

    def _truncated(self, schema: str, name: str, changes: list[BinlogChange]) -> None:
        body = b"%c%b\0%c%b\0\0\0" % (
            len(schema.encode()),
            schema.encode(),
            len(name.encode()),
            name.encode(),
        )
        table = self._describe(body)
        if self._ordinal > self._published_up_to and table is not None and table.is_watched:
            changes.append(BinlogChange(table.truncate, None, None, self._current, self._ordinal))
        self._ordinal += 1

    def _statement(self, event: bytes, changes: list[BinlogChange]) -> None:
        if self._published_up_to == _ALL:
            return
        self._refuse(Gap(
            f"A statement that changes rows was logged as a statement at {self._place}: its rows are missing.",
            hint=f"SET PERSIST binlog_format = 'ROW'; (MariaDB: SET GLOBAL) and end the sessions that had it "
            f"otherwise. {ACCEPT_GAP}",
        ))  # fmt: skip

    def _incident(self, event: bytes, changes: list[BinlogChange]) -> None:
        self._refuse(Gap(f"The server lost a part of its log at {self._place}.", hint=ACCEPT_GAP))

    def _refuse(self, error: CDCError) -> None:
        """Raise it, unless it is a part of the gap that was accepted."""
        until = self._accepts_gap_until
        if until is None or not BinlogPosition(file=self._reading, offset=self._start) < until:
            raise error
        log.error("gap_accepted", gap=error.message)

    # Transactions in two phases.

    def _xa(self, text: str, event: bytes, changes: list[BinlogChange]) -> None:
        verb, _, name = text[3:].partition(" ")
        if verb == "START":
            self._spool, self._standalone = Spool(), False
        elif verb in {"COMMIT", "ROLLBACK"}:
            spool = self._forget_prepared(name)
            self._outer_end = int.from_bytes(event[13:17], "little")
            if verb == "COMMIT" and spool is not None and self._published_up_to != _ALL:
                self._replay(spool)
                return
            if verb == "COMMIT" and spool is None and self._published_up_to != _ALL:
                log.error("prepared_before_start", transaction=name, position=self._place)
            if spool is not None:
                spool.close()
            self._commit(event, changes)

    def _xa_prepare(self, event: bytes, changes: list[BinlogChange]) -> None:
        spool, self._spool = self._spool, None
        one_phase = event[19]
        if spool is None:
            raise SourceError(f"The log has a prepared transaction at {self._place} whose start is missing.")
        if one_phase:
            self._outer_end = int.from_bytes(event[13:17], "little")
            self._replay(spool)
            return
        known = self._after.gtids if self._catching_up else self._gtids
        start = BinlogPosition(
            file=self._reading,
            offset=self._start,
            server=self._server,
            gtids=None if known is None else str(known),
        )
        self._prepared[_xid(event)] = spool, start, self._gtid
        if isinstance(self._gtids, MySQLGTIDs):
            # A set can have a hole: after a restart the server sends this one again.
            self._gtid = ""
        self._commit(event, changes)

    def _forget_prepared(self, name: str) -> Spool | None:
        spool, _, gtid = self._prepared.pop(name, (None, None, ""))
        if gtid and isinstance(self._gtids, MySQLGTIDs):
            self._gtids.add(gtid)
        return spool

    # Rows.

    def _payload(self, event: bytes, changes: list[BinlogChange]) -> None:
        self._outer_end = int.from_bytes(event[13:17], "little")
        self.inner = compressed.inner_events(event)

    def _table_map(self, event: bytes, changes: list[BinlogChange]) -> None:
        if self._spool is not None:
            self._spool.add(event)
            return
        body = event[27:-4]
        try:
            table = self._described[body]
        except KeyError:
            try:
                table = self._describe(body)
            except SourceError as error:
                if self._published_up_to != _ALL:
                    self._refuse(error)
                table = None
            self._described[body] = table
        self._tables[event[19:25]] = table

    def _inserted(self, event: bytes, changes: list[BinlogChange]) -> None:
        found = self._rows_of(event)
        if found is None:
            return
        table, event, at, image, _ = found
        self._single_rows(table, False, image, event, at, changes)

    def _deleted(self, event: bytes, changes: list[BinlogChange]) -> None:
        found = self._rows_of(event)
        if found is None:
            return
        table, event, at, image, _ = found
        self._single_rows(table, True, image, event, at, changes)

    def _single_rows(
        self,
        table: Table,
        deleted: bool,
        image: Image,
        event: bytes,
        at: int,
        changes: list[BinlogChange],
    ) -> None:
        readers, nulls, end = image.readers, image.nulls, len(event) - 4
        kind = table.delete if deleted else table.insert
        ordinal, after = self._ordinal, self._published_up_to
        if not table.is_watched:
            after = _ALL
        transaction, add = self._current, changes.append
        while at < end:
            row, at = readers[event[at : at + nulls]](event, at)
            if ordinal > after:
                if deleted:
                    add(BinlogChange(kind, row, None, transaction, ordinal))
                else:
                    add(BinlogChange(kind, None, row, transaction, ordinal))
            ordinal += 1
        self._ordinal = ordinal

    def _updated(self, event: bytes, changes: list[BinlogChange]) -> None:
        found = self._rows_of(event)
        if found is None:
            return
        table, event, at, before, after = found
        end = len(event) - 4
        is_partial = event[4] == _PARTIAL_UPDATE
        json_places = table.json_places if is_partial else []
        ordinal, published = self._ordinal, self._published_up_to
        if not table.is_watched:
            published = _ALL
        transaction, kind, is_complete = self._current, table.update, after.is_complete
        while at < end:
            old, at = before.readers[event[at : at + before.nulls]](event, at)
            partial: list[int] = []
            if is_partial:
                partial, at = _partial_columns(event, at, json_places)
            new, at = after.readers[event[at : at + after.nulls]](event, at)
            if ordinal > published:
                if partial:
                    new = _patched(old, new, partial)
                if not is_complete:
                    new = tuple(
                        was if value is ABSENT else value for was, value in zip(old, new, strict=True)
                    )
                changes.append(BinlogChange(kind, old, new, transaction, ordinal))
            ordinal += 1
        self._ordinal = ordinal

    def _rows_of(self, event: bytes) -> tuple[Table, bytes, int, Image, Image] | None:
        """Return the table, the event uncompressed, where its rows begin, and what reads them.

        For an update the second image reads the new rows. None where nobody watches, or it is not time yet.
        """
        kind = event[4]
        if self._spool is not None:
            self._spool.add(event)
            return None
        number = event[19:25]
        if number == _DUMMY_TABLE:
            return None
        try:
            table = self._tables[number]
        except KeyError:
            raise SourceError(
                f"The log has rows at {self._place} of a table that it did not describe.",
                hint=f"Update cdc-tasks, and report this with the server's version. {ACCEPT_GAP}",
            ) from None
        if table is None:
            return None
        at = 27
        if kind in _VERSION_2:
            at += int.from_bytes(event[27:29], "little")
        count, at = packed_integer(event, at)
        size = (count + 7) // 8
        image = second = table.image(event[at : at + size])
        at += size
        if kind in _UPDATES:
            second = table.image(event[at : at + size])
            at += size
        if kind >= 166:
            event = compressed.uncompress_rest(event, at)
        return table, event, at, image, second

    @property
    def _place(self) -> str:
        return f"{self._reading}:{self._start}" + (f" ({self._gtid})" if self._gtid else "")


_UPDATES: Final = frozenset({24, 31, _PARTIAL_UPDATE, 167, 170})
_VERSION_2: Final = frozenset({30, 31, 32, _PARTIAL_UPDATE, 169, 170, 171})

# STOP, INTVAR, RAND, USER_VAR, HEARTBEAT, IGNORABLE, ROWS_QUERY, PREVIOUS_GTIDS, TRANSACTION_CONTEXT, VIEW_CHANGE,
# HEARTBEAT_V2; MariaDB's ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION (the server decrypts).
_WITHOUT_MEANING: Final = frozenset({3, 5, 13, 14, 27, 28, 29, 35, 36, 37, 41, 160, 161, 163, 164})


def _gtid_set(text: str | None, *, mariadb: bool) -> GTIDSet | None:
    if text is None:
        return None
    return MariaDBGTIDs(text) if mariadb else MySQLGTIDs(text)


def _with_end(events: Iterator[bytes]) -> Iterator[bytes]:
    yield from events
    yield _END_OF_TRANSACTION


def _xid(event: bytes) -> str:
    """Return the name of an XA transaction as the statements have it: X'616263',X'',1."""
    kind, first, second = Struct("<III").unpack_from(event, 20)
    data = event[32 : 32 + first + second]
    return f"X'{data[:first].hex()}',X'{data[first:].hex()}',{kind}"


def _partial_columns(event: bytes, at: int, places: list[int]) -> tuple[list[int], int]:
    """Return which JSON columns of a row hold differences and not documents, and where the row begins."""
    options, at = packed_integer(event, at)
    if not options & 1:
        return [], at
    size = (len(places) + 7) // 8
    bitmap = int.from_bytes(event[at : at + size], "little")
    return [place for bit, place in enumerate(places) if bitmap >> bit & 1], at + size


def _patched(old: Row, new: Row, places: list[int]) -> Row:
    row = list(new)
    for place in places:
        if row[place] is None or row[place] is ABSENT:
            continue
        whole = isinstance(old[place], bytes)
        row[place] = patch(old[place], row[place]) if whole else ABSENT
    return tuple(row)
