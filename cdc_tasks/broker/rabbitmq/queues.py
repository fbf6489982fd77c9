"""Queues and exchanges of RabbitMQ: existing ones are used as they are, and only missing ones are made."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AccessRefused, NotFound
from kombu.transport import pyamqp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bind_if_allowed", "existing_queue", "exists_exchange", "throw_away_channel"]


@contextmanager
def throw_away_channel(connection: Any) -> Iterator[Any]:
    """Open a channel of an `amqp.Connection` for a request that RabbitMQ may refuse.

    A refusal closes the channel. No consumer and no confirm is on this one.
    """
    channel = connection.channel()
    try:
        yield channel
    finally:
        channel.close()


def existing_queue(connection: Any, name: str) -> Any:
    """Return RabbitMQ's answer about a queue; None if there is no such queue. It needs no permission."""
    with throw_away_channel(connection) as channel, suppress(NotFound):
        return channel.queue_declare(queue=name, passive=True)
    return None


def exists_exchange(connection: Any, name: str) -> bool:
    """Return whether there is such an exchange of any type. It needs no permission."""
    with throw_away_channel(connection) as channel, suppress(NotFound):
        channel.exchange_declare(exchange=name, type="direct", passive=True)
        return True
    return False


def bind_if_allowed(connection: Any, *binding: Any, **options: Any) -> bool:
    """Bind a queue to an exchange; return False if the user lacks the permission.

    Then an administrator who grants none is expected to have bound the queue.
    """
    with throw_away_channel(connection) as channel, suppress(AccessRefused):
        pyamqp.Channel.queue_bind(channel, *binding, **options)
        return True
    return False
