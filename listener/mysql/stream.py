"""The binlog as sent to a replica: one event after the other, as bytes."""

from __future__ import annotations

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

from listener.core.source import SourceLostError
from listener.core.wakeup import Wakeup
from listener.mysql.client.connection import Connection, account, connect, translated
from listener.mysql.client.replication import EVENT, FULL_PACKET, refusal, start_replica
from listener.mysql.client.server import Server
from listener.mysql.codec.compressed_events import NO_CHECKSUM
from listener.mysql.log.position import BinlogPosition

__all__ = ["BinlogStream", "StreamPlace", "replica_uuid"]

_LIVENESS_TIMEOUT: Final = 20.0  # seconds without a packet, not even a heartbeat: the connection is dead
_CHUNK: Final = 256 * 1024
_FULL_PACKET: Final = FULL_PACKET
_EVENT: Final = EVENT
_ROTATE, _FORMAT = 4, 15
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file

_INTACT: Final = 0x2144DF1C  # the CRC-32 of anything that ends with its own CRC-32

_OFFSETS: Final = 1 << 32

_word = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from


class BinlogStream:
    """The events from one place of the log on; `events` does not wait, `wait` does."""

    def __init__(self, url: str, *, server_id: int, name: str, wakeup: Wakeup) -> None:
        """`name` is CDC_NAME: another connection of this listener has the same replica's uuid, see `replica_uuid`."""
        self._connection: Connection[Any] = connect(url, read_timeout=60)
        self._account = account(self._connection)
        self._server_id = server_id
        self._name = name
        self._wakeup = wakeup
        self._chunks: list[bytes] = []  # received, not read yet
        self._missing = 1  # bytes needed before reading can continue
        self._has_checksums = True
        self._idle = 0.0  # seconds of waiting since the last packet
        self._socket: socket.socket

    def start(self, server: Server, position: BinlogPosition) -> None:
        """Request the log from `position` on.

        Raises SourceError, GapError and SourceLostError, also later while reading.
        """
        self._socket = start_replica(
            self._connection,
            server,
            position,
            server_id=self._server_id,
            hostname=f"cdc-tasks-{self._name}"[:60],
            uuid=replica_uuid(self._name),
        )
        self._socket.setblocking(False)

    def events(self) -> Iterator[bytes | None]:
        """Yield the events, each with its header and a checksum, and None if the next one is not there yet; forever.

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
                raise refusal(buffer[at + 4 : end], self._account)
            if length < _FULL_PACKET:
                event = buffer[at + 5 : end]
                at = end
            else:
                event = _joined(buffer, at)
                buffer, at = buffer[end:], 0  # frees the memory of the packets
            is_plain = self._has_checksums and crc32(event) == _INTACT and event[4] != _FORMAT
            yield event if is_plain else self._checked(event)

    @property
    def silence(self) -> float:
        """How many seconds the server has been silent, as of the last `wait`. Any thread may read it."""
        return self._idle

    def wait(self, seconds: float, also: Wakeup | None = None) -> None:
        """Wait up to `seconds` for an event, or for `also`.

        Raises SourceLostError if there has been no packet for too long.
        """
        if self._missing <= 0 or self._pending():
            return
        began = monotonic()
        with translated(self._connection):
            source = self._socket.fileno()
            others = [each.fileno() for each in (self._wakeup, also) if each is not None]
            readable, _, _ = select([source, *others], [], [], seconds)
        self._idle = 0.0 if source in readable else self._idle + monotonic() - began
        if self._idle > _LIVENESS_TIMEOUT:
            raise SourceLostError(f"The database has sent nothing for {_LIVENESS_TIMEOUT:.0f} seconds.")

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        if self._connection.open:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, event: bytes) -> bytes:
        """Return the event with a checksum at its end, even if the server sends none."""
        kind = event[4]
        if kind == _FORMAT:
            self._has_checksums = event[-5] == 1
            return event
        if (
            kind == _ROTATE and event[17] & _ARTIFICIAL
        ):  # it may come before the event that announces checksums
            return event if crc32(event) == _INTACT else event + NO_CHECKSUM
        if not self._has_checksums:
            return event + NO_CHECKSUM
        if crc32(event) != _INTACT:
            raise SourceLostError(
                f"An event of kind {kind} is damaged: its checksum is wrong.", code="checksum"
            )
        return event

    def _receive(self) -> bool:
        """Receive available data; return whether the missing bytes have arrived."""
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
        """Return how many bytes TLS has already taken from the socket."""
        return self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0


class StreamPlace:
    """The stream's position: everything before `position` in the log has arrived. An idle server reports it, too."""

    def __init__(self, start: BinlogPosition | None) -> None:
        """`start` is where reading begins; None if that is not a position of this server."""
        self._start = None if start is None else _place_of(*start.start)
        self._at: BinlogPosition | None = None  # of the last event

    @property
    def position(self) -> BinlogPosition | None:
        """The place; None if it is not known yet. A server that goes by GTIDs begins with the start of a file."""
        start, at = self._start, self._at
        return start if at is None or (start is not None and start > at) else at

    def passed(self, event: bytes, file: str) -> None:
        """Process an event, each later in the log than the previous one; `file` is the file of the next one."""
        at = self._at
        is_same = at is not None and file == at.file
        if event[4] == _ROTATE:
            if not is_same:
                self._at = _place_of(file, _u64(event, 19)[0])
            return
        offset: int = _word(event, 13)[0]
        if offset == 0 or event[17] & _ARTIFICIAL:
            return  # it is not in the file
        if at is not None and is_same:
            offset += at.offset - at.offset % _OFFSETS
            if offset < at.offset:
                offset += _OFFSETS  # an event has 32 bits for its place
        self._at = _place_of(file, offset)


def _place_of(file: str, offset: int) -> BinlogPosition:
    return BinlogPosition(file=file, offset=offset)


def replica_uuid(name: str) -> str:
    """Return the uuid under which a server knows the listener as a replica: the same for each of its connections."""
    return str(uuid5(NAMESPACE_URL, f"cdc-tasks:{name}"))


def _end_of_large(buffer: bytes, at: int) -> int:
    """Return where an event of 16 MB or more ends, or a place behind the buffer if that is not known yet."""
    while at + 4 <= len(buffer):
        length = _word(buffer, at)[0] & _FULL_PACKET
        at += 4 + length
        if length < _FULL_PACKET:
            return at
    return at + 4


def _joined(buffer: bytes, at: int) -> bytes:
    """Return the event that begins here, joined from its packets."""
    view, parts = memoryview(buffer), [memoryview(buffer)[at + 5 : at + 4 + _FULL_PACKET]]
    length = _FULL_PACKET
    while length == _FULL_PACKET:
        at += 4 + _FULL_PACKET
        length = _word(buffer, at)[0] & _FULL_PACKET
        parts.append(view[at + 4 : at + 4 + length])
    return b"".join(parts)
