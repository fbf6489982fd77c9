"""Queues and exchanges of RabbitMQ: existing ones are used unchanged, and only missing ones are created.

A worker queries RabbitMQ for about a hundred of them when it starts, and each answer takes time on a busy machine. So
all such requests of a connection share a channel, which is opened once.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AccessRefused, ChannelError, NotFound
from kombu.transport import pyamqp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bind_if_allowed", "existing_queue", "exists_exchange", "throw_away_channel"]


@contextmanager
def throw_away_channel(connection: Any) -> Iterator[Any]:
    """Open a channel of an `amqp.Connection`, or of kombu's, for a request that RabbitMQ may refuse.

    A refusal closes the channel. This one has no consumers and no confirms. Closing it requeues the messages that it
    got.
    """
    channel = connection.channel()
    channel.is_closed_alone = True
    try:
        yield channel
    finally:
        channel.close()


@contextmanager
def _asking_channel(connection: Any) -> Iterator[Any]:
    """Yield the shared channel of an `amqp.Connection`, for requests that RabbitMQ may refuse.

    The requests must leave nothing open. After a refusal py-amqp reopens the same channel. After any other error an
    answer may still arrive, so the channel is not reused.
    """
    channel = getattr(connection, "cdc_asking", None)
    connection.cdc_asking = None
    if channel is None or not channel.is_open:
        channel = connection.channel()
    try:
        yield channel
    except ChannelError:
        connection.cdc_asking = channel
        raise
    connection.cdc_asking = channel


def existing_queue(connection: Any, name: str) -> Any:
    """Return RabbitMQ's answer about a queue; None if there is no such queue. It needs no permission."""
    with suppress(NotFound), _asking_channel(connection) as channel:
        return channel.queue_declare(queue=name, passive=True)
    return None


def exists_exchange(connection: Any, name: str) -> bool:
    """Return whether there is such an exchange of any type. It needs no permission."""
    with suppress(NotFound), _asking_channel(connection) as channel:
        channel.exchange_declare(exchange=name, type="direct", passive=True)
        return True
    return False


def bind_if_allowed(connection: Any, *binding: Any, **options: Any) -> bool:
    """Bind a queue to an exchange; return False if the user lacks the permission.

    In that case the administrator is expected to have bound the queue.
    """
    with suppress(AccessRefused), _asking_channel(connection) as channel:
        pyamqp.Channel.queue_bind(channel, *binding, **options)
        return True
    return False
