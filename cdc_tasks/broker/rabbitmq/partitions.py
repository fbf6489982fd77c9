"""The queues for tasks with a key on RabbitMQ: each key belongs to one of them, which only one worker takes from.

`x-single-active-consumer` (RabbitMQ manual, "Consumers"): of the consumers of such a queue one gets its messages, in
their order. When its channel closes, what it has not acknowledged goes back to its place, and the next consumer begins
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from amqp.exceptions import ChannelError
from kombu import Exchange, Queue

from cdc_tasks.broker.rabbitmq.queues import existing_queue, throw_away_channel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "KEYED",
    "counted_queue",
    "is_keyed",
    "is_partition",
    "partition_for",
    "partition_queues",
    "partitions_in",
    "why_not_ours",
]

KEYED: Final = "keyed"  # `queue_name(KEYED)` stands for all of them after Celery's -Q

_ACTIVE: Final = "x-single-active-consumer"
# RabbitMQ 4 drops a message that has come back twenty times. It comes back with each worker that ends, although no task
# of it has begun; and a task that ends workers is given up before (`cdc_tasks/worker/poison.py`).
_DELIVERY_LIMIT: Final = 1_000_000


class KeyedQueue(Queue):
    """A partition, or the queue whose consumers are counted. A worker may have to do without it."""

    channel: Any  # the stubs leave out its connection

    def bind_to(self, *binding: Any, **options: Any) -> Any:
        """Bind this queue to one more exchange, as delayed delivery does, unless there is no such queue."""
        channel = options.get("channel") or self.channel  # kombu passes one when it declares an unbound queue
        if existing_queue(channel.connection, self.name) is None:
            return None
        return super().bind_to(*binding, **options)


class PartitionQueue(KeyedQueue):
    """A partition. Another queue with a single active consumer may be an application's own."""


def partition_queues(
    name: str, count: int, exchange: Exchange, *, counted_type: str = "quorum"
) -> list[Queue]:
    """Return the queues NAME_0, NAME_1, … for `count` partitions, after the queue NAME.

    That one is for no messages. Each worker that takes from the partitions takes from it too. Its number of consumers
    is that of these workers; of a partition RabbitMQ counts only the active consumer. Its type is `counted_type`: the
    worker takes from it as from its other queues, and Celery before 5.5 cannot take from a quorum queue.
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


def why_not_ours(connection: Any, queue: Queue) -> str | None:
    """Make a queue of these, unless it exists; return what RabbitMQ says if this worker has to do without it.

    `connection` is an `amqp.Connection`. Whether we may take from a partition is not asked here: we could become its
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
    """Return whether a queue is one of these."""
    return isinstance(queue, PartitionQueue)


def partitions_in(queues: Mapping[str, Any]) -> list[str]:
    """Return the names of the partitions among these queues, in the order of the settings."""
    return [name for name, queue in queues.items() if is_partition(queue)]


def counted_queue(partition: str) -> str:
    """Return the queue whose consumers are the workers that take from this partition."""
    return partition.rpartition("_")[0]


def partition_for(key: str, names: Sequence[str]) -> str:
    """Return the partition of a key. It is another one for most keys if the number of partitions changes."""
    return names[crc32(key.encode(errors="surrogatepass")) % len(names)]
