"""Tasks with a key on RabbitMQ, for workers of an application's own app with `cdc_tasks.install`.

The partitions are not among the queues of such a worker (`added_partitions` in
`cdc_tasks/broker/rabbitmq/partitions.py`): Celery would consume from them as from other queues. In `-Q` and `-X`, the
queue whose consumers are counted represents all of them: while Celery reads these options, it is one of the app's
queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from kombu import Consumer as KombuConsumer

from cdc_tasks.broker.delays import bind_to_delays
from cdc_tasks.broker.rabbitmq.partitions import added_partitions, is_partition, log_refused, why_not_ours
from cdc_tasks.installed import NO_PARTS, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from kombu import Queue

__all__ = ["leave_out", "note_choice", "offer", "open_added"]

_taken: WeakKeyDictionary[Celery, dict[str, Queue]] = (
    WeakKeyDictionary()
)  # consumed by a worker of this process


def offer(app: Celery) -> None:
    """Make `-Q` and `-X` accept the app's partitions, by the queue that represents them."""
    for counted in added_partitions(app)[:1]:
        app.amqp.queues.select_add(counted)


def note_choice(app: Celery) -> None:
    """Record whether the worker consumes from the partitions, after Celery has read `-Q` and `-X`."""
    added = added_partitions(app)
    if not added:
        return
    queues, names = app.amqp.queues, [queue.name for queue in added]
    if names[0] in queues.consume_from:  # even if the worker has to leave out a part: `open_added`
        _taken[app] = dict(zip(names, added, strict=True))
    if queues.consume_from is not queues:
        queues.deselect(names)
    for name in names:
        queues.pop(name, None)


def open_added(consumer: Any, take: Callable[[Any], None]) -> list[Queue]:
    """Declare the queues that the worker consumes from, and count it as a consumer; return the partitions.

    `take` gets any message of the queue whose consumers are counted, which should have none.
    """
    taken = _taken.get(consumer.app, {})
    if not taken or not (parts_of(consumer.app) or NO_PARTS).has_partitions:
        return []
    connection = consumer.connection.connection
    answers = {name: why_not_ours(connection, queue) for name, queue in taken.items()}
    leave_out(consumer.app, {name: error for name, error in answers.items() if error is not None})
    for queue in taken.values():
        if is_partition(queue):
            bind_to_delays(consumer.app, consumer.connection, queue)
        else:
            _be_counted(consumer, queue, take)
    return [queue for queue in taken.values() if is_partition(queue)]


def leave_out(app: Celery, refused: dict[str, str]) -> None:
    """Stop consuming from these; `refused` has their names with RabbitMQ's errors."""
    for name in refused:
        del _taken[app][name]
    if refused:
        log_refused(refused)


def _be_counted(consumer: Any, queue: Queue, take: Callable[[Any], None]) -> None:
    channel = consumer.connection.channel()
    channel.basic_qos(0, 1, False)  # py-amqp has no keyword arguments
    counted = KombuConsumer(
        channel, [queue], accept=consumer.app.conf.accept_content, on_decode_error=consumer.on_decode_error
    )
    counted.on_message = take
    counted.consume()
