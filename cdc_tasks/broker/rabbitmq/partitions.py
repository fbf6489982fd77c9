"""The queues for tasks with a key on RabbitMQ: each key belongs to one queue, which has one active worker.

`x-single-active-consumer` (RabbitMQ manual, "Consumers"): one of the consumers of such a queue gets its messages, in
order. When its channel closes, its unacknowledged messages go back to their place, and the next consumer begins there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary
from zlib import crc32

import structlog
from amqp.exceptions import ChannelError
from kombu import Exchange, Queue

from cdc_tasks.broker.rabbitmq.queues import existing_queue, throw_away_channel
from cdc_tasks.installed import asked_parts, is_foreign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery

__all__ = [
    "KEYED",
    "added_partitions",
    "counted_queue",
    "is_keyed",
    "is_partition",
    "log_refused",
    "partition_for",
    "partition_queues",
    "partitions_in",
    "partitions_of",
    "why_not_ours",
]

log = structlog.get_logger()

KEYED: Final = "keyed"  # `queue_name(KEYED)` represents all of them in Celery's -Q

_ACTIVE: Final = "x-single-active-consumer"
# RabbitMQ 4 drops a message after twenty redeliveries. But each worker that stops causes one, even if the task has not
# begun; and a task that kills workers becomes a dead letter earlier (`cdc_tasks/worker/poison.py`).
_DELIVERY_LIMIT: Final = 1_000_000


class KeyedQueue(Queue):
    """A partition, or the queue whose consumers are counted. A worker may have to leave it out."""

    channel: Any  # the stubs leave out its connection

    def bind_to(self, *binding: Any, **options: Any) -> Any:
        """Bind this queue to another exchange, as delayed delivery does, if the queue exists."""
        channel = options.get("channel") or self.channel  # kombu passes one when it declares an unbound queue
        if existing_queue(channel.connection, self.name) is None:
            return None
        return super().bind_to(*binding, **options)


class PartitionQueue(KeyedQueue):
    """A partition. Other queues with a single active consumer may belong to the application."""


def partition_queues(
    name: str, count: int, exchange: Exchange, *, counted_type: str = "quorum"
) -> list[Queue]:
    """Return the queues NAME_0, NAME_1, … for `count` partitions, after the queue NAME.

    NAME has no messages. Each worker that consumes from the partitions also consumes from it, so its number of
    consumers is the number of these workers: for a partition RabbitMQ counts only the active consumer. Its type is
    `counted_type`: the worker consumes from it as from its other queues, and Celery before 5.5 cannot consume from a
    quorum queue.
    """
    arguments = {"x-queue-type": "quorum", _ACTIVE: True, "x-delivery-limit": _DELIVERY_LIMIT}
    counted = KeyedQueue(name, exchange, routing_key=name, queue_arguments={"x-queue-type": counted_type})
    partitions = [
        PartitionQueue(
            f"{name}_{number}", exchange, routing_key=f"{name}_{number}", queue_arguments=arguments
        )
        for number in range(count)
    ]
    return [counted, *partitions]


def partitions_of(app: Celery) -> dict[str, Queue]:
    """Return the partitions of an app by name, in the order of their numbers; empty if it has none."""
    own: dict[str, Queue] = {name: queue for name, queue in app.amqp.queues.items() if is_partition(queue)}
    return own or {queue.name: queue for queue in added_partitions(app)[1:]}


def added_partitions(app: Celery) -> list[Queue]:
    """Return the result of `partition_queues` for an application's own app with our parts; empty if it has none.

    They are not among the app's queues, because those define what its workers consume from, and how its retries wait.
    The queue whose consumers are counted is an ordinary one, so that each supported Celery can consume from it.
    """
    if not is_foreign(app) or not asked_parts(app).has_partitions:
        return []
    if app not in _added:
        _added[app] = _keyed_of(app)
    return _added[app]


_added: WeakKeyDictionary[Celery, list[Queue]] = WeakKeyDictionary()


def _keyed_of(app: Celery) -> list[Queue]:
    theirs = [queue for queue in app.amqp.queues.values() if is_keyed(queue)]
    if theirs:  # their settings import ours
        return theirs
    with app.connection_for_write() as connection:  # which does not connect
        if connection.transport.driver_type != "amqp":
            return []
    from cdc_tasks.settings import (
        BrokerSettings,
        load,
    )  # it needs pydantic, which most other applications' workers do not use

    given = load(BrokerSettings, celery_broker_url="amqp://")  # the app has its own
    name = re.sub(r"[^a-zA-Z0-9_-]", "-", str(app.main or app.conf.task_default_queue))
    exchange = Exchange("cdc_tasks", type="topic")
    name = f"{given.cdc_queue_prefix}{name}_{KEYED}"
    return partition_queues(name, given.cdc_key_partitions, exchange, counted_type="classic")


def log_refused(refused: Mapping[str, str]) -> None:
    """Log the queues that a worker leaves out; `refused` has their names with RabbitMQ's errors."""
    log.warning(
        "keyed_queues_not_ours",
        queues=list(refused),
        error=next(iter(refused.values())),
        hint="If this worker should run tasks with a key, grant it these queues or create them, and restart it: "
        "docs/operating.md, Order by key on RabbitMQ.",
    )


def why_not_ours(connection: Any, queue: Queue) -> str | None:
    """Create one of these queues if it is missing; return RabbitMQ's error if this worker has to leave it out.

    `connection` is an `amqp.Connection`. This does not try to consume from a partition: the worker could become its
    active consumer.
    """
    try:
        with throw_away_channel(connection) as channel:
            queue(channel).declare()
    except ChannelError as error:
        if existing_queue(connection, queue.name) is None:
            return str(error)
    return None if is_partition(queue) else _why_not_read(connection, queue.name)


def _why_not_read(connection: Any, name: str) -> str | None:
    try:
        with throw_away_channel(connection) as channel:
            channel.basic_get(queue=name, no_ack=False)
    except ChannelError as error:
        return str(error)
    return None


def is_keyed(queue: Any) -> bool:
    """Return whether a queue is a partition or the one whose consumers are counted."""
    return isinstance(queue, KeyedQueue)


def is_partition(queue: Any) -> bool:
    """Return whether a queue is a partition."""
    return isinstance(queue, PartitionQueue)


def partitions_in(queues: Mapping[str, Any]) -> list[str]:
    """Return the names of the partitions among these queues, in the order of the settings."""
    return [name for name, queue in queues.items() if is_partition(queue)]


def counted_queue(partition: str) -> str:
    """Return the queue whose consumers are the workers that consume from this partition."""
    return partition.rpartition("_")[0]


def partition_for(key: str, names: Sequence[str]) -> str:
    """Return the partition of a key. It changes for most keys if the number of partitions changes."""
    return names[crc32(key.encode(errors="surrogatepass")) % len(names)]
