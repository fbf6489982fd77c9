"""Transactions whose end is not known yet: kept as events, on disk where they are large."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from tempfile import SpooledTemporaryFile
from typing import Final

import structlog

from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.compressed import NO_CHECKSUM
from listener.mysql.codec.progress import ALL, Progress
from listener.mysql.sql.statements import BACK_TO, SAVEPOINT, savepoint_name

__all__ = ["Aside", "Spool", "xid_of"]

log = structlog.get_logger()

_IN_MEMORY: Final = 4_000_000  # bytes
_END: Final = b"\0\0\0\0\x10" + bytes(14) + NO_CHECKSUM  # as an XID event ends a transaction

_xid = Struct("<BIII").unpack_from  # committed in one phase, format, lengths of the name's two parts


class Spool:
    """The events of one transaction, in their order."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the transaction

    def add(self, event: bytes) -> None:
        self._file.write(len(event).to_bytes(4, "little"))
        self._file.write(event)

    @property
    def size(self) -> int:
        return self._file.tell()

    def cut(self, size: int) -> None:
        """Forget what came after it had this size."""
        self._file.seek(size)
        self._file.truncate()

    def events(self) -> Iterator[bytes]:
        """Yield them, and the end of the transaction; once."""
        self._file.seek(0)
        while head := self._file.read(4):
            yield self._file.read(int.from_bytes(head, "little"))
        self.close()
        yield _END

    def close(self) -> None:
        self._file.close()


def xid_of(event: bytes) -> tuple[str, bool]:
    """Read an XA_PREPARE event: the name as the statements have it (X'616263',X'',1), committed in one phase or not."""
    one_phase, kind, first, second = _xid(event, 19)
    data = event[32 : 32 + first + second]
    return f"X'{data[:first].hex()}',X'{data[first:].hex()}',{kind}", bool(one_phase)


# --- Several of them at once ----------------------------------------------------------------------------

_NOTHING: Final = (None, "")


class Aside:
    """One transaction that is being put aside, and those that were prepared (XA) and wait for their second phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.spool: Spool | None = None  # of what is being put aside
        self._marks: dict[bytes, int] = {}  # savepoints in it
        self._prepared: dict[str, tuple[Spool, str]] = {}  # by their name, with their GTID
        self._given_back: Spool | None = None

    def begin(self) -> Spool:
        """Start to put events aside."""
        self.drop()
        self.spool, self._marks = Spool(), {}
        return self.spool

    def take(self) -> Spool | None:
        """Stop it, and return what was put aside."""
        spool, self.spool = self.spool, None
        return spool

    def drop(self) -> None:
        """Forget what is being put aside."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def add(self, event: bytes, text: bytes, changes: list[BinlogChange]) -> None:
        """Put an event aside; `text` is the statement in it, and may take back a part of what came before."""
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
        """Keep a transaction until its second phase comes."""
        former, _ = self._prepared.pop(name, _NOTHING)
        if former is not None:  # no server prepares two of one name
            former.close()
        self._prepared[name] = spool, self._progress.prepare(name)

    def settle(self, name: str, *, commits: bool) -> Spool | None:
        """Return what the second phase commits now; None where it is nothing, or was published before."""
        spool, gtid = self._prepared.pop(name, _NOTHING)
        self._progress.settle(name, gtid)
        if commits and self._progress.published_up_to != ALL:
            if spool is None:
                log.error("prepared_before_start", transaction=name, position=self._progress.place)
            return spool
        if spool is not None:
            spool.close()
        return None

    def keep_open(self, spool: Spool) -> None:
        """Close it with us: its events are being read once more."""
        if self._given_back is not None:
            self._given_back.close()
        self._given_back = spool

    def close(self) -> None:
        """Let go of what is kept on disk."""
        self.drop()
        for spool in (self._given_back, *(spool for spool, _ in self._prepared.values())):
            if spool is not None:
                spool.close()
