"""Transactions whose outcome is not known yet: stored as events, on disk if they are large."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from tempfile import SpooledTemporaryFile
from typing import Final

import structlog

from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.compressed_events import NO_CHECKSUM
from listener.mysql.codec.transaction_progress import ALL, Progress
from listener.mysql.sql.statements import BACK_TO, SAVEPOINT, savepoint_name

__all__ = ["Spool", "TransactionBuffer", "xid_of"]

log = structlog.get_logger()

_IN_MEMORY: Final = 4_000_000  # bytes
_REMEMBERED: Final = 10_000  # names of transactions that were committed
_END: Final = b"\0\0\0\0\x10" + bytes(14) + NO_CHECKSUM  # an XID event, which ends a transaction

_xid = Struct("<BIII").unpack_from  # committed in one phase, format, lengths of the name's two parts


class Spool:
    """The events of one transaction, in order."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the transaction

    def add(self, event: bytes) -> None:
        """Append an event."""
        self._file.write(len(event).to_bytes(4, "little"))
        self._file.write(event)

    @property
    def size(self) -> int:
        """Its size in bytes: a place to cut it at."""
        return self._file.tell()

    def cut(self, size: int) -> None:
        """Drop the part after this size."""
        self._file.seek(size)
        self._file.truncate()

    def events(self) -> Iterator[bytes]:
        """Yield the events, then one that ends the transaction; can be called once."""
        self._file.seek(0)
        while head := self._file.read(4):
            yield self._file.read(int.from_bytes(head, "little"))
        self.close()
        yield _END

    def close(self) -> None:
        """Delete the events; safe to call twice."""
        self._file.close()


def xid_of(event: bytes) -> tuple[str, bool]:
    """Parse an XA_PREPARE event: the name as in statements (X'616263',X'',1), and whether it commits at once."""
    one_phase, kind, first, second = _xid(event, 19)
    data = event[32 : 32 + first + second]
    return f"X'{data[:first].hex()}',X'{data[first:].hex()}',{kind}", bool(one_phase)


# --- All of one connection ------------------------------------------------------------------------------

_NOTHING: Final = (None, "")


class TransactionBuffer:
    """The transaction that is being buffered, and the prepared transactions (XA), which wait for their second phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.spool: Spool | None = None  # of the transaction that is being buffered
        self._marks: dict[bytes, int] = {}  # its savepoints: sizes of the spool
        self._prepared: dict[str, tuple[Spool, str]] = {}  # by name, with the GTID
        self._replayed: Spool | None = None
        self._second_phases: dict[str, None] = {}  # the names of those that were committed last

    @property
    def committed(self) -> frozenset[str]:
        """The names of transactions whose second phase was read, and which were not prepared again."""
        return frozenset(self._second_phases)

    def begin(self) -> Spool:
        """Start to buffer a transaction."""
        self.drop()
        self.spool, self._marks = Spool(), {}
        return self.spool

    def take(self) -> Spool | None:
        """Stop buffering; return the buffered transaction, None if there is none."""
        spool, self.spool = self.spool, None
        return spool

    def drop(self) -> None:
        """Drop the transaction that is being buffered."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def add(self, event: bytes, text: bytes, changes: list[BinlogChange]) -> None:
        """Buffer an event; `text` is the statement in it, which may roll back a part of what came before."""
        spool = self.spool or self.begin()
        if text.startswith(SAVEPOINT):
            self._marks[savepoint_name(text[len(SAVEPOINT) :])] = spool.size
        elif text.startswith(BACK_TO):
            savepoint = savepoint_name(text[len(BACK_TO) :])
            if savepoint not in self._marks:
                self._progress.take_back_to(savepoint, changes)
            spool.cut(self._marks.get(savepoint, 0))
        else:
            spool.add(event)

    def prepare(self, name: str, spool: Spool) -> None:
        """Keep a prepared transaction until its second phase comes."""
        former, _ = self._prepared.pop(name, _NOTHING)
        if former is not None:  # no server prepares two transactions with the same name
            former.close()
        self._prepared[name] = spool, self._progress.prepare(name)
        self._second_phases.pop(name, None)

    def resolve(self, name: str, *, commits: bool) -> Spool | None:
        """Return the transaction that the second phase commits now; None if there is none, or it is published."""
        spool, gtid = self._prepared.pop(name, _NOTHING)
        self._progress.resolve(name, gtid)
        if commits:
            self._second_phases.pop(name, None)  # to the end
            self._second_phases[name] = None
            if len(self._second_phases) > _REMEMBERED:
                del self._second_phases[next(iter(self._second_phases))]
        if commits and self._progress.published_up_to != ALL:
            if spool is None:
                log.error("prepared_before_start", transaction=name, position=self._progress.place)
            return spool
        if spool is not None:
            spool.close()
        return None

    def keep_open(self, spool: Spool) -> None:
        """Take over a spool whose events are being read again, to close it at the end."""
        if self._replayed is not None:
            self._replayed.close()
        self._replayed = spool

    def close(self) -> None:
        """Delete all that is kept on disk."""
        self.drop()
        for spool in (self._replayed, *(spool for spool, _ in self._prepared.values())):
            if spool is not None:
                spool.close()
