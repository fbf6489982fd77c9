"""A listener that stops itself at a named point of its work, so that a test can kill it there, or let time pass.

    python -m tests.acceptance.parking POINT HIT FD run       (as `python -m listener run`)

At the HIT-th time that it comes to POINT it writes a byte to the file descriptor FD, and stops as on SIGSTOP: what
becomes of it then is the test's to say. The listener's own code knows nothing of it: its parts are wrapped here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

__all__ = ["POINTS"]

_DEEP: Final = 3_000  # changes into a transaction: that is in the middle of a large one

POINTS: Final = (
    "before_publish",
    "half_sent",  # the broker has a part of a large batch's commands, which it is not to run without the rest
    "sent",  # the broker has, or will have, the batch and its checkpoint; we don't know yet
    "after_publish",  # the same, and what is next is about to be read
    "before_acknowledge",
    "after_acknowledge",
    "inside_large_before",  # publishing a piece of a large transaction
    "inside_large_after",
)


class _Parking:
    def __init__(self, point: str, hit: int, descriptor: int) -> None:
        self._point = point
        self._hits_left = hit
        self._descriptor = descriptor

    def reach(self, point: str) -> None:
        if point != self._point:
            return
        self._hits_left -= 1
        if self._hits_left == 0:
            os.write(self._descriptor, b"!")
            os.kill(os.getpid(), signal.SIGSTOP)


def _is_deep(checkpoint: str) -> bool:
    ordinal = checkpoint.rpartition(":")[2]
    return ordinal.isdigit() and int(ordinal) >= _DEEP


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    wrapped = getattr(owner, name)

    @wraps(wrapped)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        return around(wrapped, *arguments, **keywords)

    setattr(owner, name, wrapper)


def _install(parking: _Parking) -> None:
    import redis

    from listener.mysql.monitor import BinlogMonitor
    from listener.postgres.monitor import PostgresWALMonitor
    from listener.publish.redis.publisher import RedisPublisher

    published = False  # since the last acknowledgement

    def publish(wrapped: Callable[..., Any], self: Any, fired: Any, *, checkpoint: str, **more: Any) -> Any:
        nonlocal published
        calls = list(fired)
        if not calls:  # only the position moves on
            return wrapped(self, calls, checkpoint=checkpoint, **more)
        parking.reach("before_publish")
        if _is_deep(checkpoint):
            parking.reach("inside_large_before")
        held = wrapped(self, calls, checkpoint=checkpoint, **more)
        published = True
        parking.reach("after_publish")
        if _is_deep(checkpoint):
            parking.reach("inside_large_after")
        return held

    def acknowledge(wrapped: Callable[..., None], self: Any, position: str) -> None:
        nonlocal published
        if not published:
            return wrapped(self, position)
        published = False
        parking.reach("before_acknowledge")
        wrapped(self, position)
        parking.reach("after_acknowledge")
        return None

    def send(wrapped: Callable[..., None], self: Any, command: Any, **keywords: Any) -> None:
        pieces = [command] if isinstance(command, bytes) else list(command)
        wrapped(self, pieces, **keywords)
        if any(b"\r\nEXEC\r\n" in piece for piece in pieces):
            parking.reach("sent")
        elif any(b"\r\nLPUSH\r\n" in piece for piece in pieces):
            parking.reach("half_sent")

    _wrap(RedisPublisher, "publish", publish)
    _wrap(PostgresWALMonitor, "acknowledge", acknowledge)
    _wrap(BinlogMonitor, "acknowledge", acknowledge)
    _wrap(redis.Connection, "send_packed_command", send)


def main() -> None:
    point, hit, descriptor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    del sys.argv[1:4]
    _install(_Parking(point, hit, descriptor))
    from listener.__main__ import main as listener

    listener()


if __name__ == "__main__":
    main()
