"""A write to a broker that does not read, on two ends of a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness.waiting import at_most
from listener.publish.kombu.socket_writer import write_frames

_DATA = bytes(range(256)) * 20_000  # more than the buffers hold


class _Connection:
    """What `write_frames` uses of py-amqp; each byte that arrives is a message."""

    heartbeat = 0

    def __init__(self, sock: socket.socket) -> None:
        self.transport = self
        self.sock = sock
        self.bytes_recv = 0
        self.seen = b""

    @contextmanager
    def having_timeout(self, seconds: float) -> Iterator[socket.socket]:
        self.sock.settimeout(seconds)
        try:
            yield self.sock
        except BlockingIOError as error:
            raise TimeoutError from error

    def drain_events(self, timeout: float) -> None:
        with self.having_timeout(timeout) as sock:
            self.seen += sock.recv(1)
            self.bytes_recv += 1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def _receive(end: socket.socket) -> bytes:
    end.settimeout(at_most(10))
    found = bytearray()
    while len(found) < len(_DATA):
        found += end.recv(1 << 20)
    return bytes(found)


def _write(connection: _Connection, **options: Any) -> None:
    defaults: dict[str, Any] = {"timeout": at_most(10), "is_blocked": lambda: False, "check": lambda: None}
    write_frames(connection, _DATA, **{**defaults, **options})


def test_all_arrives_at_a_broker_that_is_slow(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(_receive(theirs)))
    reader.start()
    _write(_Connection(ours))
    reader.join()
    assert found == [_DATA]


def test_an_alarm_is_heard_and_waited_for_as_long_as_there_are_heartbeats(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    connection = _Connection(ours)
    looks = 0
    reader = threading.Thread(target=lambda: _receive(theirs))

    def is_blocked() -> bool:
        nonlocal looks
        looks += 1
        theirs.send(b"h") if looks < 5 else reader.is_alive() or reader.start()
        return b"h" in connection.seen

    _write(connection, timeout=0.6, is_blocked=is_blocked)
    reader.join()
    assert connection.seen.startswith(b"hhh")


def test_a_broker_that_takes_nothing_and_says_nothing_is_given_up(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = ends
    with pytest.raises(TimeoutError, match="does not read"):
        _write(_Connection(ours), timeout=0.1)


def test_the_wait_can_be_ended(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends

    def check() -> None:
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        _write(_Connection(ours), check=check)
