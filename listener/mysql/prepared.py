"""Transactions whose end is not known yet: kept as events, on disk where they are large."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Final

__all__ = ["Spool"]

_IN_MEMORY: Final = 4_000_000  # bytes


class Spool:
    """The events of one transaction, in their order."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives as long as the transaction

    def add(self, event: bytes) -> None:
        self._file.write(len(event).to_bytes(4, "little"))
        self._file.write(event)

    def events(self) -> Iterator[bytes]:
        """Yield them; once."""
        self._file.seek(0)
        while head := self._file.read(4):
            yield self._file.read(int.from_bytes(head, "little"))
        self.close()

    def close(self) -> None:
        self._file.close()
