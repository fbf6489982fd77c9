"""Turns a session into that of a replica: it requests the log, and the events come on its socket.

The only place that uses mysql-replication. Its reader registers the session as a replica, and requests the log. The
events are read here, as bytes: the reader's own iterator reconnects by itself, skips unknown events, and
decodes every event.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct
from typing import Any, BinaryIO, Final

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.binlogstream import ReportSlave

from cdc_tasks.errors import CDCError
from listener.core.source import SourceError, SourceLostError
from listener.mysql.client.connection import Connection, account, execute, translated
from listener.mysql.client.server import Server
from listener.mysql.errors import ACCEPT_GAP, translate_dump
from listener.mysql.log.gtid import MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["EVENT", "FULL_PACKET", "HEARTBEAT", "events_as_tool", "refusal", "start_replica"]

HEARTBEAT: float = 5  # seconds between two heartbeats of a server without changes for us
FULL_PACKET: Final = 0xFFFFFF  # bytes; a packet of this size continues in the next one
EVENT, _END, _ERROR = 0x00, 0xFE, 0xFF  # the first byte of a packet

_DUMP_BY_GTID, _THROUGH_GTID = 0x1E, 4  # a command (COM_BINLOG_DUMP_GTID), and its flag
_AS_TOOL: Final = 0  # the server_id of mysqlbinlog: a reader that is not a replica

_word = Struct("<I").unpack_from
_error = Struct("<xH").unpack_from
_gtid_head = Struct("<HIIQI").pack


def start_replica(
    connection: Connection[Any],
    server: Server,
    position: BinlogPosition,
    *,
    server_id: int,
    hostname: str,
    uuid: str,
) -> socket.socket:
    """Request the log from `position` on, without an end; return the socket on which its packets come.

    `hostname` and `uuid` are what SHOW REPLICAS shows of us. Raises SourceError, GapError and SourceLostError.
    """
    execute(connection, "SET @master_binlog_checksum = 'CRC32'")
    report = {"hostname": hostname}
    if position.gtids is not None and not server.is_mariadb:
        execute(connection, "SET @slave_uuid = %s, @replica_uuid = %s", [uuid, uuid])
        execute(connection, "SET @master_heartbeat_period = %s", [int(HEARTBEAT * 1_000_000_000)])
        return _ask_by_gtid(connection, position.gtids, server_id=server_id, report=report)
    options: dict[str, Any] = {"is_mariadb": True, "auto_position": position.gtids}
    if position.gtids is None or position.is_place_on(server.name):
        options = _place(*position.start)
    return _ask(
        connection,
        **options,
        server_id=server_id,
        blocking=True,
        slave_heartbeat=HEARTBEAT,
        report_slave=report,
        slave_uuid=uuid,
    )


def events_as_tool(connection: Connection[Any], file: str, offset: int) -> Iterator[bytes]:
    """Yield the events from a position to the log's end, as mysqlbinlog does: this is not a replica.

    Raises as `start_replica` does.
    """
    execute(connection, "SET @master_binlog_checksum = 'CRC32'")
    our_account = account(connection)
    for packet in _packets(_ask(connection, **_place(file, offset), server_id=_AS_TOOL)):
        if packet[0] == _END:
            return
        if packet[0] != EVENT:
            raise refusal(packet, our_account)
        yield packet[1:]


def refusal(packet: bytes, account: str) -> CDCError:
    """Return what a packet without an event means; `account` is ours, as GRANT names it."""
    if packet[0] == _ERROR:
        (number,) = _error(packet)
        text = packet[3:]
        if text.startswith(b"#"):  # and five characters: the SQLSTATE
            text = text[6:]
        return translate_dump(number, text.decode(errors="replace"), account)
    if packet[0] == _END:
        return SourceLostError("The server ended the stream of its binlog.")
    return SourceError(f"The server sent a packet of an unknown kind: {packet[0]:#x}.", code="unknown_packet")


class _AskedError(Exception):
    """The reader has requested the log."""


def _ask(connection: Connection[Any], **options: Any) -> socket.socket:
    """Let the library's reader request the log; `options` are its own. Return the socket on which the packets come.

    The reader gets its connections from a function that we pass. It opens the one for the log first. When it opens
    the second one, for queries about tables, it has requested the log on the first: an exception ends it there.
    """
    connections = iter((connection,))

    def give(**_: Any) -> Connection[Any]:
        wanted = next(connections, None)
        if wanted is None:
            raise _AskedError
        return wanted

    reader = BinLogStreamReader(connection_settings={}, pymysql_wrapper=give, enable_logging=False, **options)
    with translated(connection), suppress(_AskedError):
        reader.fetchone()
        raise SourceError(
            "mysql-replication does not connect as the listener expects.",
            hint="pip install 'mysql-replication>=1.0.17,<1.1'",
            code="mysql_replication",
        )
    return _socket_of(connection)


def _place(file: str, offset: int) -> dict[str, Any]:
    """Return the reader's options for a place in the log; raises SourceError if the protocol cannot name it."""
    if offset >> 32:
        raise SourceError(
            f"{file}:{offset} is beyond 4 GB: a replica can request it only by GTID.",
            hint=ACCEPT_GAP,
            code="offset_too_large",
        )
    return {"log_file": file, "log_pos": offset, "resume_stream": True}


def _ask_by_gtid(
    connection: Connection[Any], gtids: str, *, server_id: int, report: dict[str, str]
) -> socket.socket:
    """Request all but these transactions from MySQL. The library's reader supports no tags and no empty set."""
    encoded = MySQLGTIDs(gtids).encoded()
    no_file, start = 0, 4
    request = _gtid_head(_THROUGH_GTID, server_id, no_file, start, len(encoded)) + encoded
    our_account = account(connection)
    found = _socket_of(connection)
    with translated(connection):
        found.sendall(ReportSlave(report).encoded(server_id))
        answer = next(_packets(found))
        if answer[0] == _ERROR:
            raise refusal(answer, our_account)
        found.sendall(b"".join(_command(_DUMP_BY_GTID, request)))
    return found


def _command(command: int, body: bytes) -> Iterator[bytes]:
    """Yield the packets of a command."""
    payload = b"%c%b" % (command, body)
    for number, at in enumerate(range(0, len(payload) + 1, FULL_PACKET)):
        part = payload[at : at + FULL_PACKET]
        yield len(part).to_bytes(3, "little") + bytes((number & 0xFF,)) + part


def _packets(source: socket.socket) -> Iterator[bytes]:
    """Yield the packets that come; raises SourceLostError if the connection ends, OSError."""
    with source.makefile("rb") as file:
        while True:
            packet = b""
            length = FULL_PACKET
            while length == FULL_PACKET:
                head = _read(file, 4)
                length = _word(head)[0] & FULL_PACKET
                packet += _read(file, length)
            yield packet


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise SourceLostError("The database closed the connection.")
    return data


def _socket_of(connection: Connection[Any]) -> socket.socket:
    """Return the connection's socket, to write to and read from without the driver."""
    found: socket.socket = connection._sock  # type: ignore[attr-defined]  # noqa: SLF001 - the driver has no public way
    return found
