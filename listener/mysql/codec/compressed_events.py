"""Compressed parts of a binlog: MySQL's whole transactions, MariaDB's single events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import zstandard

from listener.mysql.codec.table_map import packed_integer
from listener.mysql.codec.values import inflate

__all__ = ["NO_CHECKSUM", "inner_events", "uncompress_rest"]

NO_CHECKSUM: Final = b"\0\0\0\0"  # in the place of the checksum
_HEADER: Final = 19
_CHUNK: Final = 256 * 1024

# TRANSACTION_PAYLOAD_EVENT's fields (MySQL's `Transaction_payload_event`).
_END, _COMPRESSION, _SIZE = 0, 2, 3
_ZSTD, _NONE = 0, 255


def inner_events(event: bytes) -> Iterator[bytes]:
    """Yield the events of a MySQL transaction that was logged as one (binlog_transaction_compression).

    Each is unpacked when it is taken: the memory does not depend on the transaction's size.
    Raises ValueError if the compression is unknown, and while events are taken if it is damaged.
    """
    at, compression, size = _HEADER, _ZSTD, 0
    while True:
        field, at = packed_integer(event, at)
        if field == _END:
            break
        length, at = packed_integer(event, at)
        if field == _COMPRESSION:
            compression, _ = packed_integer(event, at)
        elif field == _SIZE:
            size, _ = packed_integer(event, at)
        at += length
    payload = memoryview(event)[at:-4]
    if compression not in {_ZSTD, _NONE}:
        raise ValueError(f"a transaction with the compression {compression}")
    return _cut(_limited(_chunks(payload) if compression == _NONE else _unpack(payload), size))


def uncompress_rest(event: bytes, at: int) -> bytes:
    """Return a MariaDB event (log_bin_compress) with the part after `at` uncompressed.

    Raises ValueError if the compression is unknown.
    """
    head = event[at]
    if head & 0x70:
        raise ValueError(f"an event with the compression {(head & 0x70) >> 4}")
    start = at + 1 + (head & 7)
    plain = inflate(event[start:-4], int.from_bytes(event[at + 1 : start], "big"))
    return b"%b%b%b" % (event[:at], plain, NO_CHECKSUM)


def _unpack(payload: memoryview) -> Iterator[bytes]:
    try:
        yield from zstandard.ZstdDecompressor().read_to_iter(payload, write_size=_CHUNK)
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed transaction that is damaged: {error}") from error


def _chunks(payload: memoryview) -> Iterator[bytes]:
    return (bytes(payload[at : at + _CHUNK]) for at in range(0, len(payload), _CHUNK))


def _limited(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the chunks, up to `size` bytes: a few compressed bytes may become gigabytes. Raises ValueError for more."""
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            raise ValueError("a compressed transaction that is larger than it says")
        yield chunk


def _cut(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut chunks of any size into events."""
    parts: list[bytes] = []
    missing = _HEADER  # bytes that are needed for the next event, as far as its size is known
    for chunk in chunks:
        parts.append(chunk)
        missing -= len(chunk)
        if missing > 0:
            continue
        data, at = b"".join(parts), 0
        while (missing := at + _size_at(data, at) - len(data)) <= 0:
            end = len(data) + missing
            yield data[at:end] + NO_CHECKSUM
            at = end
        parts = [data[at:]]
    if any(parts):
        raise ValueError("a compressed transaction that is cut off")


def _size_at(data: bytes, at: int) -> int:
    """Return the size of the event that begins there, or of its header if that is not complete yet."""
    if len(data) - at < _HEADER:
        return _HEADER
    size = int.from_bytes(data[at + 9 : at + 13], "little")
    if size < _HEADER:
        raise ValueError(f"an event of {size} bytes")
    return size
