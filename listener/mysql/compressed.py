"""Compressed parts of a binlog: MySQL's whole transactions, MariaDB's single events."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import zstandard

from listener.mysql.table_map import packed_integer

__all__ = ["NO_CHECKSUM", "inner_events", "uncompress_rest"]

NO_CHECKSUM: Final = b"\0\0\0\0"  # stands where other events have theirs
_HEADER: Final = 19
_CHUNK: Final = 256 * 1024

# TRANSACTION_PAYLOAD_EVENT's fields (MySQL's `Transaction_payload_event`).
_END, _COMPRESSION = 0, 2
_ZSTD, _NONE = 0, 255


def inner_events(event: bytes) -> Iterator[bytes]:
    """Yield the events of a MySQL transaction that was logged as one (binlog_transaction_compression).

    They are unpacked as they are asked for: the memory does not depend on the transaction's size.
    Raises ValueError where the compression is of no known kind.
    """
    at, compression = _HEADER, _ZSTD
    while True:
        field, at = packed_integer(event, at)
        if field == _END:
            break
        length, at = packed_integer(event, at)
        if field == _COMPRESSION:
            compression, _ = packed_integer(event, at)
        at += length
    payload = memoryview(event)[at:-4]
    if compression not in {_ZSTD, _NONE}:
        raise ValueError(f"a transaction compressed in the way {compression}")
    return _cut(_chunks(payload) if compression == _NONE else _unpack(payload))


def uncompress_rest(event: bytes, at: int) -> bytes:
    """Return a MariaDB event (log_bin_compress) with what is behind `at` as it was before its compression.

    Raises ValueError where the compression is of no known kind.
    """
    head = event[at]
    if head & 0x70:
        raise ValueError(f"an event compressed in the way {(head & 0x70) >> 4}")
    return b"%b%b%b" % (event[:at], zlib.decompress(event[at + 1 + (head & 7) : -4]), NO_CHECKSUM)


def _unpack(payload: memoryview) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor().read_to_iter(payload, write_size=_CHUNK)
    yield from unpacker


def _chunks(payload: memoryview) -> Iterator[bytes]:
    return (bytes(payload[at : at + _CHUNK]) for at in range(0, len(payload), _CHUNK))


def _cut(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut what comes in pieces of any size into events."""
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        at = 0
        while len(data) - at >= _HEADER:
            end = at + int.from_bytes(data[at + 9 : at + 13], "little")
            if end > len(data):
                break
            yield data[at:end] + NO_CHECKSUM
            at = end
        rest = data[at:]
    if rest:
        raise ValueError("a compressed transaction that is cut off")
