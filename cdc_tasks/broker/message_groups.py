"""Message groups on any broker: queries for people, and the worker's calls to the transport."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from kombu.exceptions import OperationalError

from cdc_tasks.broker.rabbitmq.message_groups import PartitionedGroups
from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.message_groups import HOLD_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["GroupsUnknownError", "groups_of", "groups_on", "hold_key", "note_retry"]


class GroupsUnknownError(CDCError):
    """The keys that are held up could not be read from the broker."""


def hold_key(message: Any) -> None:
    """Make a message keep its key when it is acknowledged, if its headers ask for it: its task has given up."""
    headers = message.headers
    if isinstance(headers, dict) and headers.get(HOLD_HEADER) is True:
        _tell(message, "hold_key")


def note_retry(message: Any, *, is_sent: bool = True) -> None:
    """Make a message pass its key to its retry when it is acknowledged; `is_sent` False: no retry was sent."""
    _tell(message, "note_retry", is_sent)


def _tell(message: Any, what: str, *more: Any) -> None:
    tell = getattr(getattr(message.channel, "qos", None), what, None)
    if tell is not None:
        tell(message.delivery_tag, *more)


@contextmanager
def groups_of(app: Celery) -> Iterator[MessageGroups | PartitionedGroups]:
    """Open the message groups of the app's broker. Raises GroupsUnknownError, also for errors within the block."""
    with app.connection_for_write() as connection:
        kind = _kind_of(connection)
        errors = _errors_of(connection)
        try:
            # No long retry: a person waits for the answer.
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
            )
            if kind == "amqp":
                yield PartitionedGroups(connection)
                return
            with connection.channel() as channel:  # with Sentinel: to the master
                yield MessageGroups(
                    redis.Redis(connection_pool=channel.pool),  # type: ignore[attr-defined]  # what our channels have
                    channel.global_keyprefix,  # type: ignore[attr-defined]  # the same
                )
        except errors as error:
            url = "CELERY_BROKER_URL" if kind == "redis" else "CACHE_URL"
            raise GroupsUnknownError(
                f"The broker did not answer: {error}", hint=f"redis-cli -u ${url} PING"
            ) from error


def groups_on(connection: Any) -> MessageGroups | PartitionedGroups:
    """Return the message groups of this connection's broker; the caller keeps the connection open.

    Raises GroupsUnknownError. Methods of the result raise the errors of Redis and kombu.
    """
    if _kind_of(connection) == "amqp":
        return PartitionedGroups(connection)
    channel: Any = connection.default_channel
    return MessageGroups(redis.Redis(connection_pool=channel.pool), channel.global_keyprefix)


def _kind_of(connection: Any) -> str:
    kind = str(connection.transport.driver_type)
    if kind not in {"redis", "amqp"}:
        raise GroupsUnknownError(
            "This broker is neither Redis nor RabbitMQ, so tasks with a key have no order on it.",
            hint="See docs/tasks.md, Order by key.",
            code="groups_not_on_redis",
        )
    return kind


def _errors_of(connection: Any) -> tuple[type[Exception], ...]:
    of_broker = (*connection.connection_errors, *connection.channel_errors)
    return (redis.RedisError, OperationalError, OSError, CacheAwayError, *of_broker)
