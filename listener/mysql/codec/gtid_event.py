"""The events that begin a transaction: its GTID, and when it was first committed. Pure values.

Sources: MySQL's source documentation, "Gtid_event" and "Serialization Library"; MariaDB's, "GTID_EVENT".
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final
from zlib import crc32

__all__ = ["mariadb_gtid", "mark_of", "mysql_gtid", "tagged_gtid"]

_WITH_GTID: Final = 33  # the kind of the event; a server without GTIDs sends another one
_HEADER: Final = 19

_mysql = Struct("<x16sQ").unpack_from  # flags, server, number
_mariadb = Struct("<IxI10xQIB").unpack_from  # timestamp, server_id; number, domain, flags

# The fields of a tagged event that matter here. A field of any other number is one integer.
_SERVER, _NUMBER, _TAG, _COMMITTED, _COMMITTED_FIRST = 1, 2, 3, 6, 7


def mysql_gtid(event: bytes) -> tuple[str, int]:
    """Return the GTID, empty if there is none, and the time of the commit in microseconds since 1970."""
    gtid = ""
    if event[4] == _WITH_GTID:
        server, number = _mysql(event, _HEADER)
        gtid = f"{_uuid(server)}:{number}"
    committed = int.from_bytes(event[61:68], "little")
    if committed >> 55:  # it was first committed on another server, at the time that follows
        committed = int.from_bytes(event[68:75], "little")
    return gtid, committed


def tagged_gtid(event: bytes) -> tuple[str, int]:
    """Return the same for a GTID with a tag (MySQL 8.3 and later): `server:tag:number`."""
    server, number, tag, times = b"", 0, "", {_COMMITTED: 0}
    at = _HEADER
    for _ in range(3):  # version, size, last field that must be known
        _, at = _integer(event, at)
    while at < len(event) - 4:
        field, at = _integer(event, at)
        if field == _SERVER:
            digits = []
            for _ in range(16):
                digit, at = _integer(event, at)
                digits.append(digit)
            server = bytes(digits)
            continue
        value, at = _integer(event, at)
        if field == _NUMBER:
            number = value >> 1  # the lowest bit is the sign
        elif field == _TAG:
            tag = event[at : at + value].decode()
            at += value
        elif field in {_COMMITTED, _COMMITTED_FIRST}:
            times[field] = value
    return f"{_uuid(server)}:{tag}:{number}", times.get(_COMMITTED_FIRST, times[_COMMITTED])


def mariadb_gtid(event: bytes) -> tuple[str, int, int]:
    """Return the GTID, the time of the commit in microseconds since 1970, and the flags."""
    timestamp, server, number, domain, flags = _mariadb(event)
    return f"{domain}-{server}-{number}", timestamp * 1_000_000, flags


def mark_of(event: bytes) -> str:
    """Return a checksum that differs for another transaction with the same GTID.

    It covers the GTID, the place in the file and the time; on MySQL also the time in microseconds and the
    transaction's length.
    """
    return f"{crc32(event[:17] + event[19:-4]):08x}"  # without flags and checksum: the server may change or omit them


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer and its end. It has 1 to 9 bytes: the first one's lowest ones count those that follow."""
    first = data[at]
    more = (~first & first + 1).bit_length() - 1
    end = at + 1 + more
    if more == 8:
        return int.from_bytes(data[at + 1 : end], "little"), end
    return int.from_bytes(data[at:end], "little") >> more + 1, end


@lru_cache(maxsize=1000)
def _uuid(server: bytes) -> str:
    text = server.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
