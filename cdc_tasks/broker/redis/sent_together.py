"""Messages with a key that a task sends together: one step in Redis for all of them."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collect", "sent_together"]

_MOST: Final = 500  # messages in one step

_Put = tuple[Any, str, str]  # a channel, a list, a message
_collected: ContextVar[list[_Put] | None] = ContextVar("cdc_tasks_sent_together", default=None)


@contextmanager
def sent_together() -> Iterator[None]:
    """Collect the messages with a key that this thread sends in the block; send them at its end, in order.

    If the block raises an error, none of them is sent. On brokers other than Redis this changes nothing. Raises kombu's
    OperationalError if Redis does not confirm them; then it is unknown whether they were sent.
    """
    puts: list[_Put] = []
    token = _collected.set(puts)
    try:
        yield
    finally:
        _collected.reset(token)
    for start in range(0, len(puts), _MOST):
        _send(puts[start : start + _MOST])


def collect(channel: Any, place: str, message: str) -> bool:
    """Keep a message for the end of the block, if this is in one; return whether it is."""
    puts = _collected.get()
    if puts is None:
        return False
    puts.append((channel, place, message))
    return True


def _send(puts: list[_Put]) -> None:
    channel = puts[-1][0]  # earlier ones may be closed: it has reconnected
    try:
        channel.groups.put(*((place, message) for _, place, message in puts))
    except (redis.RedisError, OSError) as error:
        raise OperationalError(str(error)) from error
