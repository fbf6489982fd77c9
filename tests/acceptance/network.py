"""A network between the listener and one server that fails as networks do: it stalls, resets, half-closes, refuses."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Self

__all__ = ["Cable"]

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


class Cable:
    """Forwards a port of its own to one on 127.0.0.1; what a fault holds back comes through late, as on a real one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._refusing = False
        self._new_stalled = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="cable", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.mend()
        self.reset()

    def stall(self, *, new_ones: bool) -> None:
        """Let nothing through on any connection, nor on `new_ones` where that is said."""
        self._new_stalled = new_ones
        for link in self._alive():
            link.open.clear()

    def reset(self) -> None:
        """Cut every connection with RST."""
        for link in self._alive():
            link.reset()

    def refuse(self) -> None:
        """Cut every connection, and each new one at once."""
        self._refusing = True
        self.reset()

    def half_close(self, *, to_server: bool) -> None:
        """End one direction of every connection as if its sender had; what it sends later is thrown away."""
        for link in self._alive():
            link.half_close(to_server=to_server)

    def cut_after(self, count: int) -> None:
        """Cut each connection once so many more bytes went to the server: mostly within a message."""
        for link in self._alive():
            link.bytes_left = count

    def mend(self) -> None:
        """End every fault; what was held back goes through now."""
        self._refusing = self._new_stalled = False
        for link in self._alive():
            link.open.set()

    def _alive(self) -> list[_Link]:
        with self._lock:
            self._links = [link for link in self._links if not link.ended]
            return list(self._links)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            link = _Link(client, server)
            if self._new_stalled:
                link.open.clear()
            with self._lock:
                self._links.append(link)
            if self._refusing:
                link.reset()
            else:
                link.start()


class _Link:
    """One connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client = client
        self._server = server
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deaf: set[socket.socket] = set()  # get nothing any more
        self._directions_left = 2
        self._lock = threading.Lock()
        self.open = threading.Event()
        self.open.set()
        self.bytes_left: int | None = None
        self.ended = False

    def start(self) -> None:
        for pair in ((self._client, self._server), (self._server, self._client)):
            threading.Thread(target=self._pump, args=pair, name="link", daemon=True).start()

    def reset(self) -> None:
        self.ended = True
        for each in (self._client, self._server):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                each.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
            each.close()
        self.open.set()

    def half_close(self, *, to_server: bool) -> None:
        deaf = self._server if to_server else self._client
        self._deaf.add(deaf)
        with suppress(OSError):
            deaf.shutdown(socket.SHUT_WR)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self.open.wait()
                if target in self._deaf:
                    continue
                if target is self._server and self.bytes_left is not None:
                    if len(data) >= self.bytes_left:
                        target.sendall(data[: self.bytes_left])
                        self.reset()
                        return
                    self.bytes_left -= len(data)
                target.sendall(data)
        self.open.wait()
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        self._end_of_direction()

    def _end_of_direction(self) -> None:
        with self._lock:
            self._directions_left -= 1
            if self._directions_left:
                return
        self.ended = True
        self._client.close()
        self._server.close()
