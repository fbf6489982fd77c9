"""What tells a log from another with the same names: when a file was begun, and what is at a place of it.

A log that was reset, or a server that was restored, has files of the same names, and hands out the same GTIDs again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from struct import Struct
from typing import Final

from listener.core.source import GapError, SourceError
from listener.mysql.client.connection import connect, execute, translated
from listener.mysql.codec.compressed import NO_CHECKSUM
from listener.mysql.codec.gtid_event import mark_of
from listener.mysql.errors import GTIDModeError
from listener.mysql.log.gtid import MariaDBState

__all__ = ["birth_of_log", "mark_at", "state_before"]

_DUMP: Final = 0x12  # COM_BINLOG_DUMP
_ROTATE, _FORMAT, _GTID_LIST = 4, 15, 163
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file
_END: Final = 0xFE
_FIRST: Final = 4  # the offset of a file's first event
# Without waiting at the log's end, as no replica: like mysqlbinlog.
_AS_A_TOOL: Final = (1, 0)

_request = Struct("<IHI").pack


def birth_of_log(url: str, file: str) -> int:
    """Return seconds since 1970, from the file's first event; disturbs no replica.

    Raises SourceError, SourceLostError, and GapError where there is no such file.
    """
    with _events(url, file, _FIRST) as events:
        return next(int.from_bytes(event[:4], "little") for event in events if event[4] == _FORMAT)


def state_before(url: str, file: str) -> MariaDBState:
    """Return what MariaDB's log had before a file; raises as `birth_of_log`."""
    with _events(url, file, _FIRST) as events:
        head = takewhile(_is_about_the_file, events)
        return next((MariaDBState.decoded(event) for event in head if event[4] == _GTID_LIST), MariaDBState())


def mark_at(url: str, file: str, offset: int) -> str | None:
    """Return the mark of the event at a place, empty where there is none; None where gtid_mode forbids to read it.

    Raises SourceLostError.
    """
    try:
        with _events(url, file, offset) as events:
            found = next((event for event in events if not _is_about_the_file(event)), b"")
    except GTIDModeError:
        return None
    except (SourceError, GapError):
        return ""
    return mark_of(found) if found else ""


def _is_about_the_file(event: bytes) -> bool:
    return event[4] in {_ROTATE, _FORMAT, _GTID_LIST} or bool(event[17] & _ARTIFICIAL)


@contextmanager
def _events(url: str, file: str, offset: int) -> Iterator[Iterator[bytes]]:
    """Give the events from a place on, each with a checksum, to the log's end."""
    with closing(connect(url)) as connection:
        execute(connection, "SET @master_binlog_checksum = 'CRC32', @mariadb_slave_capability = 4")
        try:
            with translated(connection):
                request = _request(offset, *_AS_A_TOOL) + file.encode()
                connection._execute_command(_DUMP, request)  # type: ignore[attr-defined]  # noqa: SLF001 - the driver has no public way
                yield _checked(iter(connection._read_packet, None))  # noqa: SLF001
        finally:
            connection._force_close()  # type: ignore[attr-defined]  # noqa: SLF001 - more is on its way


def _checked(packets: Iterator[object]) -> Iterator[bytes]:
    has_checksums = True
    for packet in packets:
        data: bytes = packet.get_all_data()  # type: ignore[attr-defined]  # the driver's, which has no types
        if data[0] == _END:
            return
        event = data[1:]
        if event[4] == _FORMAT:
            has_checksums = event[-5] == 1
        yield event if has_checksums else event + NO_CHECKSUM
