"""A TCP proxy that fails like a network: at a chosen request, before or after the server gets it, or by silence."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from enum import Enum
from typing import Self

from harness.waiting import at_most

__all__ = ["Fault", "Proxy"]

_CHUNK = 65536


class Fault(Enum):
    """What happens to a request that contains the trigger, and to its connection."""

    LOSE_REQUEST = "the connection is cut, and the server never gets it"
    LOSE_ANSWER = "the server gets it, and the connection is cut before its answer"
    HOLD_ANSWER = "the server gets it, and no answer comes"
    HOLD_REQUEST = "nothing gets through, in either direction"
    DELAY_REQUEST = "the connection is cut, and the server gets it when it is released"


class Proxy:
    """A proxy in front of a server on 127.0.0.1; each fault happens once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._faults: deque[tuple[Fault, bytes]] = deque()
        self._refusing = False
        self._released = threading.Event()
        self._delivered = threading.Event()
        self.faults = 0  # number of faults that have happened

    def fail(self, fault: Fault, *, at: bytes) -> None:
        """Make the next request that contains `at` fail; several faults happen in the order of the calls."""
        self._faults.append((fault, at))

    def release(self) -> None:
        """Forward a delayed request to the server; return when it is answered."""
        self._released.set()
        assert self._delivered.wait(at_most(10))

    def refuse(self, refusing: bool = True) -> None:
        """Cut every connection, and each new one at once, until `refusing=False`."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            for each in list(self._sockets):
                _shut(each)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        _shut(self._listening)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self._refusing:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with server:
                self._track({client, server}, True)
                try:
                    self._pump(client, server)
                except OSError:
                    pass
                finally:
                    self._track({client, server}, False)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        seen = b""  # of the request, so far: a trigger may arrive in two pieces
        while True:
            readable, _, _ = select.select([client, server], [], [])
            for source in readable:
                data = source.recv(_CHUNK)
                if not data:
                    return
                if source is server:
                    client.sendall(data)
                    seen = b""
                elif fault := self._due(seen + data):
                    self._apply(fault, data, client, server)
                    return
                else:
                    server.sendall(data)
                    seen = data[-100:]

    def _due(self, data: bytes) -> Fault | None:
        with self._lock:
            if not self._faults or self._faults[0][1] not in data:
                return None
            self.faults += 1
            return self._faults.popleft()[0]

    def _apply(self, fault: Fault, data: bytes, client: socket.socket, server: socket.socket) -> None:
        if fault in {Fault.LOSE_ANSWER, Fault.HOLD_ANSWER}:
            server.sendall(data)
            server.recv(_CHUNK)  # it is done
        if fault is Fault.DELAY_REQUEST:
            _shut(client)
            self._released.wait()
            server.sendall(data)
            server.recv(_CHUNK)
            self._delivered.set()
        if fault in {Fault.HOLD_ANSWER, Fault.HOLD_REQUEST}:
            while client.recv(_CHUNK):
                pass  # until the client gives up

    def _track(self, pair: set[socket.socket], here: bool) -> None:
        with self._lock:
            self._sockets = self._sockets | pair if here else self._sockets - pair


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
