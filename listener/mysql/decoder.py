"""The events of a binlog to changes: files, transactions, statements; rows are read in `rows.py`.

Sources: MySQL's source documentation, "Binary log event structures"; MariaDB's, "Replication Protocol".
An event of a kind that is not known here stops the stream, unless the server marks it as one to be ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NoReturn

import structlog

from cdc_tasks.errors import CDCError
from listener.monitor import Gap, SourceError
from listener.mysql import compressed
from listener.mysql.change import BinlogChange
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.position import BinlogPosition
from listener.mysql.prepared import Spool, xid_of
from listener.mysql.progress import ALL, Progress
from listener.mysql.rows import Describe, RowReader
from listener.mysql.statements import Query, emptied_table, hides_rows, parse_query

__all__ = ["Decoder"]

log = structlog.get_logger()

Changes = list[BinlogChange]

_header = Struct("<IBIIIH").unpack_from  # timestamp, type, server_id, size, end position, flags
_mariadb_gtid = Struct("<QIB").unpack_from  # number, domain, flags

_IGNORABLE: Final = 0x80  # a flag: whoever does not know the event may go on
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file
_STANDALONE, _PREPARED = 0x01, 0x40  # flags of MariaDB's GTID event
_QUERY, _XID, _GTID = 2, 16, 33
_END_OF_TRANSACTION: Final = b"\0\0\0\0\x10" + bytes(14) + compressed.NO_CHECKSUM  # as an XID event ends one

# STOP, INTVAR, RAND, USER_VAR, HEARTBEAT, IGNORABLE, ROWS_QUERY, PREVIOUS_GTIDS, TRANSACTION_CONTEXT, VIEW_CHANGE,
# HEARTBEAT_V2; MariaDB's ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION (the server decrypts).
_WITHOUT_MEANING: Final = frozenset({3, 5, 13, 14, 27, 28, 29, 35, 36, 37, 41, 160, 161, 163, 164})
_OF_ROWS: Final = frozenset({19, 23, 24, 25, 30, 31, 32, 39, 166, 167, 168, 169, 170, 171})

_SAVEPOINT, _BACK_TO = b"SAVEPOINT ", b"ROLLBACK TO "

_UPDATE: Final = "Update cdc-tasks, and report this with the server's version."


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
        """Leave out, with a word in the log, what cannot be read and stands before `accepts_gap_until`."""
        self.inner: Iterator[bytes] | None = None  # events inside the last one: to be decoded next
        self.progress = Progress(after, mariadb=mariadb)
        self._rows = RowReader(describe, self.progress)
        self._accepts_gap_until = accepts_gap_until
        self._may_roll_back = mariadb
        self._sources: dict[bytes, str] = {}  # a server's uuid, as text
        self._prepared: dict[str, tuple[Spool, str]] = {}  # XA transactions by their name, with their GTID
        self._spool: Spool | None = None  # of what is being put aside
        self._marks: dict[bytes, int] = {}  # savepoints in it
        self._replayed: Spool | None = None
        self._handlers = self._make_handlers()

    def decode(self, event: bytes, changes: Changes) -> None:
        """Append the changes in one event, which ends with a checksum; raises SourceError, Gap."""
        if self._spool is not None and event[4] in _OF_ROWS:
            self._spool.add(event)
            return
        handler = self._handlers.get(event[4], self._unknown)
        try:
            handler(event, changes)
        except (ValueError, KeyError, IndexError) as error:
            self._refuse(SourceError(f"something that cannot be decoded: {error!r}", hint=_UPDATE))
        except (SourceError, Gap) as error:
            self._refuse(error)

    def close(self) -> None:
        """Let go of what is kept on disk."""
        for spool in (self._spool, self._replayed, *(spool for spool, _ in self._prepared.values())):
            if spool is not None:
                spool.close()

    @property
    def needs_end(self) -> bool:
        """Whether changes must not be given away yet: the transaction may be rolled back by its last event.

        MariaDB logs a transaction that was rolled back when it made or dropped a temporary table.
        """
        return self._may_roll_back and self.progress.is_open and self.inner is None

    def put_aside(self, event: bytes, changes: Changes) -> bool:
        """Keep an event for later, on disk if need be; returns whether it ended the transaction.

        Then what was put aside comes next as `inner`, or has been taken back.
        """
        if self._spool is None:
            self._spool, self._marks = Spool(), {}
        spool = self._spool
        text = parse_query(event, len(event) - 4).text if event[4] == _QUERY else b""
        if text.startswith(_SAVEPOINT):
            self._marks[text[len(_SAVEPOINT) :]] = spool.size
        elif text.startswith(_BACK_TO):
            self._cut_back_to(text[len(_BACK_TO) :], spool, changes)
        elif event[4] != _XID and text not in {b"COMMIT", b"ROLLBACK"}:
            spool.add(event)
        else:
            self._spool = None
            self._end_aside(event, text, spool, changes)
            return True
        return False

    def _cut_back_to(self, savepoint: bytes, spool: Spool, changes: Changes) -> None:
        if savepoint not in self._marks:
            self.progress.take_back_to(savepoint, changes)
        spool.cut(self._marks.get(savepoint, 0))

    def _end_aside(self, event: bytes, text: bytes, spool: Spool, changes: Changes) -> None:
        if text == b"ROLLBACK":
            spool.close()
            self.decode(event, changes)
        else:
            self.progress.outer_end = int.from_bytes(event[13:17], "little")
            self._replay(spool)

    def _make_handlers(self) -> dict[int, Callable[[bytes, Changes], None]]:
        rows = self._rows
        return {
            2: self._query,
            4: self._rotate,
            15: self._format,
            16: lambda event, _: self._commit(event),
            **dict.fromkeys((17, 18), lambda _event, _changes: self._hidden()),  # LOAD DATA as a statement
            19: lambda event, _: rows.table_map(event),
            26: lambda _event, _changes: self._incident(),
            **dict.fromkeys((_GTID, 34), lambda event, _: self._mysql_gtid(event)),
            38: lambda event, _: self._xa_prepare(event),
            40: lambda event, _: self._payload(event),
            42: lambda _event, _changes: self._tagged_gtid(),
            162: lambda event, _: self._mariadb_gtid(event),
            165: self._compressed_query,
            **dict.fromkeys((23, 30, 166, 169), rows.inserted),
            **dict.fromkeys((24, 31, 39, 167, 170), rows.updated),
            **dict.fromkeys((25, 32, 168, 171), rows.deleted),
        }

    def _unknown(self, event: bytes, _changes: Changes) -> None:
        if event[4] not in _WITHOUT_MEANING and not event[17] & _IGNORABLE:
            raise SourceError(f"an event of a kind that is not known: {event[4]}", hint=_UPDATE)

    def _refuse(self, error: CDCError) -> None:
        """Raise it with the place, unless it is a part of the gap that was accepted."""
        if self.progress.published_up_to == ALL:
            return
        message = f"The log has at {self.progress.place} {error.message}"
        until = self._accepts_gap_until
        if until is None or not self.progress.here < until:
            raise type(error)(message, hint=f"{error.hint or _UPDATE}\n{ACCEPT_GAP}")
        log.error("gap_accepted", gap=message)

    # The file.

    def _rotate(self, event: bytes, changes: Changes) -> None:
        file = event[27:-4].decode()
        self._rows.forget_numbers()
        if event[17] & _ARTIFICIAL:
            self.progress.file = file
        else:
            self.progress.abandon(changes)
            self.progress.rotate(file, int.from_bytes(event[19:27], "little"))

    def _format(self, event: bytes, changes: Changes) -> None:
        lengths = event[76:-5]
        if event[75] != 19 or lengths[18] != 8 or lengths[22] not in {0, 8} or lengths[29] not in {0, 10}:
            raise SourceError("events with a layout that cannot be decoded", hint=_UPDATE)
        self._rows.forget_numbers()
        self.progress.abandon(changes)

    # Transactions.

    def _mysql_gtid(self, event: bytes) -> None:
        gtid = ""
        if event[4] == _GTID:
            source = event[20:36]
            if source not in self._sources:
                text = source.hex()
                self._sources[source] = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
            gtid = f"{self._sources[source]}:{int.from_bytes(event[36:44], 'little')}"
        committed = int.from_bytes(event[61:68], "little")
        if committed >> 55:
            committed = int.from_bytes(event[68:75], "little")  # where it was committed first
        # Standalone unless a BEGIN follows.
        self._begin(gtid, event, committed, standalone=True)

    def _tagged_gtid(self) -> NoReturn:
        raise SourceError("a GTID with a tag, which cannot be read", hint="SET gtid_next = 'AUTOMATIC';")

    def _mariadb_gtid(self, event: bytes) -> None:
        timestamp, _, server, *_ = _header(event)
        number, domain, flags = _mariadb_gtid(event, 19)
        gtid = f"{domain}-{server}-{number}"
        self._begin(gtid, event, timestamp * 1_000_000, standalone=bool(flags & _STANDALONE))
        if flags & _PREPARED:
            self._spool = Spool()

    def _begin(self, gtid: str, event: bytes, committed: int, *, standalone: bool) -> None:
        _, _, _, size, end, _ = _header(event)
        self.progress.begin(gtid, end=end, size=size, committed=committed, standalone=standalone)

    def _commit(self, event: bytes) -> None:
        self.progress.finish(int.from_bytes(event[13:17], "little"))

    def _payload(self, event: bytes) -> None:
        self.progress.outer_end = int.from_bytes(event[13:17], "little")
        self.inner = compressed.inner_events(event)

    # Statements.

    def _query(self, event: bytes, changes: Changes) -> None:
        self._judge(parse_query(event, len(event) - 4), event, changes)

    def _compressed_query(self, event: bytes, changes: Changes) -> None:
        at = 32 + int.from_bytes(event[30:32], "little") + event[27] + 1
        plain = compressed.uncompress_rest(event, at)
        self._judge(parse_query(plain, len(plain) - 4), event, changes)

    def _judge(self, query: Query, event: bytes, changes: Changes) -> None:
        text, progress = query.text, self.progress
        if text == b"BEGIN":
            progress.is_standalone = False
        elif text == b"COMMIT":
            self._commit(event)
        elif text == b"ROLLBACK":
            progress.take_back(changes, 0)
            self._commit(event)
        elif text.startswith(_SAVEPOINT):
            progress.mark(text[len(_SAVEPOINT) :])
        elif text.startswith(_BACK_TO):
            progress.take_back_to(text[len(_BACK_TO) :], changes)
        elif text.startswith(b"XA "):
            self._xa(text[3:].decode(errors="replace"), event)
        else:
            self._definition(query, event, changes)

    def _definition(self, query: Query, event: bytes, changes: Changes) -> None:
        """Treat what is no row and no end of a transaction: mostly DDL, a transaction of its own."""
        emptied = emptied_table(query)
        try:
            if emptied:
                self._rows.truncated(*emptied, changes)
            elif hides_rows(query):
                self._hidden()
        finally:
            if self.progress.is_standalone:
                self._commit(event)

    def _hidden(self) -> NoReturn:
        raise Gap(
            "a statement that changes rows, logged as a statement: its rows are missing.",
            hint="SET PERSIST binlog_format = 'ROW';   (MariaDB: SET GLOBAL), and end the sessions"
            " that have it otherwise.",
        )

    def _incident(self) -> NoReturn:
        raise Gap("an incident: the server lost a part of it.", hint="See the server's error log.")

    # Transactions in two phases.

    def _xa(self, text: str, event: bytes) -> None:
        verb, _, name = text.partition(" ")
        if verb == "START":
            self._spool, self.progress.is_standalone = Spool(), False
        elif verb in {"COMMIT", "ROLLBACK"}:
            spool, gtid = self._prepared.pop(name, (None, ""))
            self.progress.settle(name, gtid)
            is_new = self.progress.published_up_to != ALL
            if verb == "COMMIT" and spool is not None and is_new:
                self.progress.outer_end = int.from_bytes(event[13:17], "little")
                self._replay(spool)
                return
            if verb == "COMMIT" and spool is None and is_new:
                log.error("prepared_before_start", transaction=name, position=self.progress.place)
            if spool is not None:
                spool.close()
            self._commit(event)

    def _xa_prepare(self, event: bytes) -> None:
        spool, self._spool = self._spool, None
        if spool is None:
            raise SourceError("a prepared transaction whose start is missing.", hint=_UPDATE)
        name, one_phase = xid_of(event)
        if one_phase:
            self.progress.outer_end = int.from_bytes(event[13:17], "little")
            self._replay(spool)
        else:
            self._prepared[name] = spool, self.progress.prepare(name)
            self._commit(event)

    def _replay(self, spool: Spool) -> None:
        self._replayed = spool
        self.inner = _with_end(spool.events())


def _with_end(events: Iterator[bytes]) -> Iterator[bytes]:
    yield from events
    yield _END_OF_TRANSACTION
