"""Makes PNG pictures of pages small: such a page has few colours, so one byte per pixel is enough."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["reduced"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {2: 3, 6: 4}  # by PNG's colour type: RGB, RGBA
_PALETTE: Final = 3
_COLORS: Final = 256

Color = tuple[int, int, int]


def reduced(png: bytes) -> bytes:
    """Return the picture with its 256 most frequent colours; each other colour becomes the nearest of these."""
    width, height, channels, packed = _parts_of(png)
    rows = [
        [(row[at], row[at + 1], row[at + 2]) for at in range(0, len(row), channels)]
        for row in _unfiltered(zlib.decompress(packed), width, height, channels)
    ]
    palette, index = _palette([color for row in rows for color in row])
    data = b"".join(b"\0" + bytes(index[color] for color in row) for row in rows)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _PALETTE, 0, 0, 0)),
        (b"PLTE", bytes(value for color in palette for value in color)),
        (b"IDAT", zlib.compress(data, 9)),
        (b"IEND", b""),
    )
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _parts_of(png: bytes) -> tuple[int, int, int, bytes]:
    """Return width, height, bytes a pixel and the compressed rows."""
    place, packed, head = len(_SIGNATURE), b"", b""
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        body = png[place + 8 : place + 8 + length]
        head = body if kind == b"IHDR" else head
        packed += body if kind == b"IDAT" else b""
        place += length + 12
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    if depth != 8 or interlaced or color not in _CHANNELS:
        raise ValueError(f"not a picture of Chromium's: depth {depth}, colour type {color}")
    return width, height, _CHANNELS[color], packed


def _unfiltered(data: bytes, width: int, height: int, channels: int) -> Iterator[bytes]:
    """Yield the rows; https://www.w3.org/TR/png-3/#9Filters."""
    length, above = width * channels, bytes(width * channels)
    for number in range(height):
        start = number * (length + 1)
        row = bytearray(data[start + 1 : start + 1 + length])
        _undo(data[start], row, above, channels)
        above = bytes(row)
        yield above


def _undo(kind: int, row: bytearray, above: bytes, channels: int) -> None:
    for at in range(len(row)) if kind else ():
        left = row[at - channels] if at >= channels else 0
        corner = above[at - channels] if at >= channels else 0
        add = (0, left, above[at], (left + above[at]) // 2, _nearest_of(left, above[at], corner))[kind]
        row[at] = (row[at] + add) & 255


def _nearest_of(left: int, above: int, corner: int) -> int:
    """Return Paeth's predictor."""
    guess = left + above - corner
    return min((left, above, corner), key=lambda each: abs(guess - each))


def _palette(pixels: Sequence[Color]) -> tuple[list[Color], dict[Color, int]]:
    """Return the colours, and the number of the nearest one for each existing colour."""
    found = [color for color, _ in Counter(pixels).most_common()]
    kept = found[:_COLORS]
    index = {color: number for number, color in enumerate(kept)}
    for color in found[_COLORS:]:
        index[color] = min(range(len(kept)), key=lambda number: _distance(kept[number], color))
    return kept, index


def _distance(one: Color, other: Color) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
