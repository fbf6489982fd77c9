"""When a file of the binlog was begun: a log that was reset has files of the same names, which are others."""

from __future__ import annotations

from contextlib import closing
from struct import Struct
from typing import Final

from listener.mysql.connection import connect, execute, translated

__all__ = ["birth_of_log"]

_DUMP: Final = 0x12  # COM_BINLOG_DUMP
_FORMAT: Final = 15
# From the file's start, without waiting at its end, as no replica: like mysqlbinlog.
_AS_A_TOOL: Final = (4, 1, 0)

_request = Struct("<IHI").pack


def birth_of_log(url: str, file: str) -> int:
    """Return seconds since 1970, from the file's first event; disturbs no replica.

    Raises SourceError, SourceLost, and Gap where there is no such file.
    """
    with closing(connect(url)) as connection:
        execute(connection, "SET @master_binlog_checksum = 'CRC32', @mariadb_slave_capability = 4")
        with translated(connection):
            connection._execute_command(_DUMP, _request(*_AS_A_TOOL) + file.encode())  # type: ignore[attr-defined]  # noqa: SLF001 - the driver has no public way
            while True:
                packet = connection._read_packet()  # type: ignore[no-untyped-call]  # noqa: SLF001
                event = packet.get_all_data()[1:]
                if event[4] == _FORMAT:
                    connection._force_close()  # type: ignore[attr-defined]  # noqa: SLF001 - more is on its way
                    return int.from_bytes(event[:4], "little")
