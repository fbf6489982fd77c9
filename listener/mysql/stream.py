"""A replica's connection: events of the binlog come, as bytes. The one place that touches mysql-replication."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from select import select
from struct import Struct
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self
from uuid import NAMESPACE_URL, uuid5
from zlib import crc32

from pymysqlreplication import BinLogStreamReader

from cdc_tasks.errors import CDCError
from listener.core.source import SourceError, SourceLostError
from listener.core.wakeup import Wakeup
from listener.mysql.client.connection import Connection, account, connect, execute, translated
from listener.mysql.client.server import Server
from listener.mysql.codec.compressed import NO_CHECKSUM
from listener.mysql.errors import ACCEPT_GAP, translate_dump
from listener.mysql.log.gtid import MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["BinlogStream", "replica_uuid"]

_HEARTBEAT: Final = 5  # seconds between two words of a server that has no changes for us
_SILENCE: Final = 20.0  # without a word for so long, the connection is half-open
_CHUNK: Final = 256 * 1024
_FULL_PACKET: Final = 0xFFFFFF  # the next packet goes on where this one ends
_EVENT, _EOF, _ERROR = 0x00, 0xFE, 0xFF
_DUMP: Final = 0x12
_DUMP_GTID, _THROUGH_GTID = 0x1E, 4  # a command, and its flag
_ROTATE, _FORMAT = 4, 15
_ARTIFICIAL: Final = 0x20

_INTACT: Final = 0x2144DF1C  # what CRC-32 makes of anything that ends with its own CRC-32

_error = Struct("<xH").unpack_from
_word = Struct("<I").unpack_from
_dump_place = Struct("<IHI").pack
_dump_head = Struct("<HIIQI").pack
_SQLSTATE = re.compile(rb"#.{5}")


class BinlogStream:
    """Events from one place of the log on; `events` does not wait, `wait` does."""

    def __init__(self, url: str, *, server_id: int, name: str, wakeup: Wakeup) -> None:
        """`name` is CDC_NAME: it tells our own former connection from another replica's."""
        self._connection: Connection[Any] = connect(url, read_timeout=60)
        self._account = account(self._connection)
        self._server_id = server_id
        self._name = name
        self._wakeup = wakeup
        self._chunks: list[bytes] = []  # what came and was not looked at
        self._missing = 1  # bytes until something can be done with them
        self._has_checksums = True
        self._silent = 0.0  # seconds that we have waited since the last word
        self._socket: socket.socket

    def start(self, server: Server, position: BinlogPosition) -> None:
        """Ask for the log from `position` on; raises SourceError, GapError and SourceLostError, also later while reading."""
        with translated(self._connection):
            reader = self._reader(server, position)
            # The library's own iterator would reconnect by itself, leave out what it does not know, and decode
            # each event: it is left at the place where it has made a replica of the connection.
            if server.is_mariadb and not position.is_place_on(server.name):
                reader._BinLogStreamReader__connect_to_stream()  # noqa: SLF001
            else:  # it knows of no tags in GTIDs, and no places of MariaDB's
                period = _HEARTBEAT * 1_000_000_000
                execute(
                    self._connection,
                    "SET @master_heartbeat_period = %s, @mariadb_slave_capability = 4",
                    [period],
                )
                reader._stream_connection = self._connection  # noqa: SLF001
                reader._register_slave()  # noqa: SLF001
                command, request = _dump_request(self._server_id, position, by_gtid=not server.is_mariadb)
                self._connection._execute_command(command, request)  # type: ignore[attr-defined]  # noqa: SLF001
        self._socket = self._connection._sock  # type: ignore[attr-defined]  # noqa: SLF001 - taken over from here
        self._socket.setblocking(False)

    def events(self) -> Iterator[bytes | None]:
        """Yield the events, each with its header and a checksum, and None where there is none yet; without end.

        Raises as `start` does. To be called once.
        """
        buffer, at = b"", 0
        while True:
            length = _word(buffer, at)[0] & _FULL_PACKET if at + 4 < len(buffer) else 1
            end = at + 4 + length if length < _FULL_PACKET else _end_of_large(buffer, at)
            if end > len(buffer):
                self._missing = end - len(buffer)
                while not self._receive():
                    yield None
                buffer, at = b"".join((buffer[at:], *self._chunks)), 0
                self._chunks.clear()
                continue
            if buffer[at + 4] != _EVENT:
                raise _refusal(buffer[at + 4 : end], self._account)
            if length < _FULL_PACKET:
                event = buffer[at + 5 : end]
                at = end
            else:
                event = _joined(buffer, at)
                buffer, at = buffer[end:], 0  # not to be held while the event is read
            is_plain = self._has_checksums and crc32(event) == _INTACT and event[4] != _FORMAT
            yield event if is_plain else self._checked(event)

    def wait(self, seconds: float) -> None:
        """Wait for an event, at most so long; raises SourceLostError where the server has been silent for too long."""
        if self._missing <= 0 or self._pending():
            return
        began = monotonic()
        with translated(self._connection):
            readable, _, _ = select([self._socket.fileno(), self._wakeup.fileno()], [], [], seconds)
        self._silent = 0.0 if readable else self._silent + monotonic() - began
        if self._silent > _SILENCE:
            raise SourceLostError(f"The database has not been heard of for {_SILENCE:.0f} seconds.")

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._connection._force_close()  # type: ignore[attr-defined]  # noqa: SLF001 - no word of farewell: it would not be read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reader(self, server: Server, position: BinlogPosition) -> BinLogStreamReader:
        """Return the library's reader, set up for our connection and for the place to start at."""
        execute(self._connection, "SET @master_binlog_checksum = 'CRC32'")
        execute(self._connection, "SET @slave_uuid = %s, @replica_uuid = %s", [self._uuid, self._uuid])
        return BinLogStreamReader(
            connection_settings={"read_timeout": 2 * _HEARTBEAT},
            server_id=self._server_id,
            blocking=True,
            is_mariadb=server.is_mariadb,
            slave_heartbeat=_HEARTBEAT,
            report_slave={"hostname": f"cdc-tasks-{self._name}"[:60]},
            pymysql_wrapper=lambda **_: self._connection,
            enable_logging=False,
            auto_position=position.gtids,
        )

    def _checked(self, event: bytes) -> bytes:
        """Return the event with a checksum at its end, whether the server has them or not."""
        kind = event[4]
        if kind == _FORMAT:
            self._has_checksums = event[-5] == 1
            return event
        if (
            kind == _ROTATE and event[17] & _ARTIFICIAL
        ):  # of the server's own making, perhaps before any other
            return event if crc32(event) == _INTACT else event + NO_CHECKSUM
        if not self._has_checksums:
            return event + NO_CHECKSUM
        if crc32(event) != _INTACT:
            raise SourceLostError(f"An event of kind {kind} came damaged: its checksum is wrong.")
        return event

    @property
    def _uuid(self) -> str:
        return replica_uuid(self._name)

    def _receive(self) -> bool:
        """Take in what has come; tells whether the missing bytes are there."""
        while self._missing > 0:
            try:
                chunk = self._socket.recv(max(_CHUNK, min(self._missing, 1 << 24)))
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            except OSError as error:
                raise SourceLostError(f"The connection to the database broke: {error}") from error
            if not chunk:
                raise SourceLostError("The database closed the connection.")
            self._chunks.append(chunk)
            self._missing -= len(chunk)
        return True

    def _pending(self) -> int:
        """Bytes that TLS has taken from the socket already."""
        return self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0


def replica_uuid(name: str) -> str:
    """Return what a listener calls itself among a server's replicas: the same on each of its connections."""
    return str(uuid5(NAMESPACE_URL, f"cdc-tasks:{name}"))


def _refusal(payload: bytes, account: str) -> CDCError:
    """Return what a packet that is no event means; `account` is ours as GRANT names it."""
    if payload[0] == _ERROR:
        (code,) = _error(payload)
        text = _SQLSTATE.sub(b"", payload[3:], count=1).decode(errors="replace")
        return translate_dump(code, text, account)
    if payload[0] == _EOF:
        return SourceLostError("The server ended the stream of its binlog.")
    return SourceError(f"The server sent a packet of an unknown kind: {payload[0]:#x}.")


def _end_of_large(buffer: bytes, at: int) -> int:
    """Return where an event of 16 MB and more ends, or a place behind the buffer where that is not known yet."""
    while at + 4 <= len(buffer):
        length = _word(buffer, at)[0] & _FULL_PACKET
        at += 4 + length
        if length < _FULL_PACKET:
            return at
    return at + 4


def _joined(buffer: bytes, at: int) -> bytes:
    """Return the event that begins here, put together from its packets."""
    view, parts = memoryview(buffer), [memoryview(buffer)[at + 5 : at + 4 + _FULL_PACKET]]
    length = _FULL_PACKET
    while length == _FULL_PACKET:
        at += 4 + _FULL_PACKET
        length = _word(buffer, at)[0] & _FULL_PACKET
        parts.append(view[at + 4 : at + 4 + length])
    return b"".join(parts)


def _dump_request(server_id: int, position: BinlogPosition, *, by_gtid: bool) -> tuple[int, bytes]:
    """Return a command and its body: everything but the transactions that are done, or from a place on."""
    if position.gtids is None or not by_gtid:
        file, offset = position.start
        if offset >> 32:
            raise SourceError(
                f"{file}:{offset} is beyond 4 GB, which a replica can ask for by GTID only.", hint=ACCEPT_GAP
            )
        return _DUMP, _dump_place(offset, 0, server_id) + file.encode()
    encoded = MySQLGTIDs(position.gtids).encoded()
    no_file, start = 0, 4
    return _DUMP_GTID, _dump_head(_THROUGH_GTID, server_id, no_file, start, len(encoded)) + encoded
