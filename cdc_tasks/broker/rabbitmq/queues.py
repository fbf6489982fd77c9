"""Queues and exchanges of RabbitMQ: one that exists is taken as it is, whoever made it; only a missing one is made."""

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
    """Open a channel of an `amqp.Connection`: a refusal closes it, and with it no consumer and no confirm."""
    channel = connection.channel()
    try:
        yield channel
    finally:
        channel.close()


def existing_queue(connection: Any, name: str) -> Any:
    """Return RabbitMQ's answer about a queue, None where there is none; needs no permission."""
    with throw_away_channel(connection) as channel, suppress(NotFound):
        return channel.queue_declare(queue=name, passive=True)
    return None


def exists_exchange(connection: Any, name: str) -> bool:
    """Return whether there is such an exchange, of whatever type; needs no permission."""
    with throw_away_channel(connection) as channel, suppress(NotFound):
        channel.exchange_declare(exchange=name, type="direct", passive=True)
        return True
    return False


def bind_if_allowed(connection: Any, *binding: Any, **options: Any) -> bool:
    """Bind a queue to an exchange; returns whether RabbitMQ lets us: who grants us no right has bound it himself."""
    with throw_away_channel(connection) as channel, suppress(AccessRefused):
        pyamqp.Channel.queue_bind(channel, *binding, **options)
        return True
    return False
