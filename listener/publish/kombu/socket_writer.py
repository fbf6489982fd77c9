"""Writing to a RabbitMQ that may stop reading: its alarm is noticed even during a write.

RabbitMQ reports its alarm once, and reads nothing until it is over. A plain write that fills the socket's
buffers does not see that message. It ends with a timeout, and what RabbitMQ has read by then is sent twice. The same
happens if the kernel closes such a connection: after a second, because py-amqp sets TCP_USER_TIMEOUT (`tcp(7)`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import Any, Final

__all__ = ["socket_settings", "wait_without_limit", "write_frames"]

_LOOK_EVERY: Final = 500  # milliseconds
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it


def socket_settings(timeout: float) -> dict[int, int]:
    """Return py-amqp's `socket_settings` for a broker that may read nothing for `timeout` seconds."""
    return {} if _USER_TIMEOUT is None else {_USER_TIMEOUT: int(timeout * 1000)}


def wait_without_limit(connection: Any, timeout: float, *, on: bool) -> None:
    """Let the kernel keep the connection even if the broker reads nothing, or (`on=False`) stop doing so."""
    for name, value in socket_settings(0 if on else timeout).items():
        connection.transport.sock.setsockopt(socket.SOL_TCP, name, value)


def write_frames(
    connection: Any,
    frames: bytes,
    *,
    timeout: float,
    is_blocked: Callable[[], bool],
    check: Callable[[], None],
) -> None:
    """Write all bytes to a connection of py-amqp; while its buffer is full, handle what the broker sends.

    Raise TimeoutError if the broker reads nothing for `timeout` seconds. While its alarm is on (`is_blocked`) its
    heartbeats count as well. Calls `check`, which may raise, while waiting. Sends no heartbeat: it would end up
    in the middle of a frame.
    """
    rest, seen, give_up_at = memoryview(frames), None, 0.0
    while rest := _rest_of(rest, connection.transport):
        blocked = is_blocked()
        signs = len(rest), connection.bytes_recv if blocked else None
        if signs != seen:
            give_up_at = monotonic() + max(timeout, 2 * connection.heartbeat if blocked else 0)
        else:
            check()
            if monotonic() > give_up_at:
                raise TimeoutError("RabbitMQ does not read from this connection.")
        seen = signs
        _wait(connection)


def _rest_of(data: memoryview, transport: Any) -> memoryview:
    """Write what the socket accepts immediately; return the rest."""
    with suppress(TimeoutError), transport.having_timeout(0) as sock:
        while data:
            data = data[sock.send(data) :]
    return data


def _wait(connection: Any) -> None:
    """Wait until the socket accepts more or data arrives, and handle that data."""
    waiting = poll()
    waiting.register(connection.transport.sock, POLLIN | POLLOUT)
    waiting.poll(_LOOK_EVERY)
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=0)
