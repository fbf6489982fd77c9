"""Transactions whose end is not known yet: kept as events, on disk where they are large."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from tempfile import SpooledTemporaryFile
from typing import Final

from listener.mysql.codec.compressed import NO_CHECKSUM

__all__ = ["Spool", "xid_of"]

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
