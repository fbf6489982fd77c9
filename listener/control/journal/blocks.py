"""The data of a block: lines of JSON, or rows as they were logged, compressed with zstandard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from listener.control.journal.file import SEPARATOR
from listener.control.journal.rows import lines_of

__all__ = ["Blocks"]

_AS_LOGGED: Final = b"rows"  # at the start of such a block; zstandard frames begin differently


class Blocks:
    """Packs and unpacks blocks, with a checksum: damaged data raise an error."""

    def __init__(self) -> None:
        from zstandard import ZstdCompressor, ZstdDecompressor

        self._compress = ZstdCompressor(level=1, write_checksum=True).compress
        self._decompress = ZstdDecompressor().decompress

    def pack(self, lines: Iterable[bytes]) -> bytes:
        """Return a block of lines."""
        return self._compress(SEPARATOR.join(lines))

    def pack_rows(self, rows: bytes) -> bytes:
        """Return a block with the output of `rows.as_logged`."""
        return _AS_LOGGED + self._compress(rows)

    def text(self, data: bytes, *, with_digits: bytes = b"") -> bytes:
        """Return a block's lines, with separators between them; empty if no value can contain these digits.

        A number, or a string of digits, is the same in JSON as in the log. So most blocks need no rendering.
        """
        if not data.startswith(_AS_LOGGED):
            return self._decompress(data)
        rows = self._decompress(data[len(_AS_LOGGED) :])
        return SEPARATOR.join(lines_of(rows)) if with_digits in rows else b""

    def unpack(self, data: bytes) -> list[bytes]:
        """Return a block's lines."""
        return self.text(data).split(SEPARATOR)

    def first_line(self, data: bytes) -> bytes:
        """Return the first line of a block."""
        if data.startswith(_AS_LOGGED):
            return next(lines_of(self._decompress(data[len(_AS_LOGGED) :])))
        return self._decompress(data).partition(SEPARATOR)[0]
