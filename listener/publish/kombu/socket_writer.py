"""Writing to a RabbitMQ that may stop reading: its alarm is noticed in the middle of a write.

RabbitMQ says once that its alarm is on, and reads nothing until it is over. A plain write that fills the socket's
buffers does not see that message. It ends with a time-out, and what RabbitMQ has read by then comes twice. The same
happens where the kernel closes such a connection: after a second, as py-amqp sets TCP_USER_TIMEOUT (`tcp(7)`).
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
    """Let the kernel keep the connection however long the broker reads nothing, or end that (`on=False`)."""
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
    """Write all bytes to a connection of py-amqp; while they do not fit in, handle what the broker sends.

    Raises TimeoutError if the broker takes nothing for `timeout` seconds. While its alarm is on (`is_blocked`) its
    heartbeats count as well. Calls `check`, which may raise, while nothing goes on. Sends no heartbeat: it would get
    into the middle of a frame.
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
    """Write what the socket takes at once; return the rest."""
    with suppress(TimeoutError), transport.having_timeout(0) as sock:
        while data:
            data = data[sock.send(data) :]
    return data


def _wait(connection: Any) -> None:
    """Wait until the socket takes more or something arrives, and handle what has arrived."""
    waiting = poll()
    waiting.register(connection.transport.sock, POLLIN | POLLOUT)
    waiting.poll(_LOOK_EVERY)
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=0)
