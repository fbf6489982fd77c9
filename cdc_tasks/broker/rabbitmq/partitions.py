"""The queues for tasks with a key on RabbitMQ: each key belongs to one of them, which only one worker takes from.

`x-single-active-consumer` (RabbitMQ manual, "Consumers"): of the consumers of such a queue one gets its messages, in
their order. When its channel closes, what it has not acknowledged goes back to its place, and the next consumer begins
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from kombu import Exchange, Queue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KEYED", "counted_queue", "is_partition", "partition_for", "partition_queues", "partitions_in"]

KEYED: Final = "keyed"  # `queue_name(KEYED)` stands for all of them after Celery's -Q

_ACTIVE: Final = "x-single-active-consumer"
# RabbitMQ 4 drops a message that has come back twenty times. It comes back with each worker that ends, although no task
# of it has begun; and a task that ends workers is given up before (`cdc_tasks/worker/poison.py`).
_DELIVERY_LIMIT: Final = 1_000_000


class PartitionQueue(Queue):
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
    counted = Queue(name, exchange, routing_key=name, queue_arguments={"x-queue-type": counted_type})
    partitions = [
        PartitionQueue(
            f"{name}_{number}", exchange, routing_key=f"{name}_{number}", queue_arguments=arguments
        )
        for number in range(count)
    ]
    return [counted, *partitions]


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
