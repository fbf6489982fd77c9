"""Sending a message that RabbitMQ keeps until it is due, as Celery's delayed delivery does.

See `cdc_tasks/broker/delays.py` for how it works, and for the worker's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu import Exchange, Queue

from cdc_tasks.broker.rabbitmq.queues import bind_if_allowed, exists_exchange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from celery import Celery

__all__ = ["bind_to_delays", "can_delay", "delayed"]

_FIRST = "celery_delayed_27"  # the exchange to which Celery sends such a message


def can_delay(app: Celery, where: Mapping[str, Any]) -> bool:
    """Return whether RabbitMQ can keep a message until it is due; `where` are options of `send_task_message`.

    Celery supports this with quorum queues, and with any exchange except a direct one.
    """
    try:
        from kombu.transport import native_delayed_delivery  # noqa: F401 - an older kombu has none
    except ImportError:
        return False
    queues = app.amqp.queues.values()
    if not any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in queues):
        return False
    queue = where.get("queue")
    kind = queue.exchange.type if queue else where.get("exchange_type")
    return kind != "direct"


def delayed(where: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    """Return `where` for a message that RabbitMQ delivers there after this many seconds."""
    from kombu.transport.native_delayed_delivery import calculate_routing_key

    queue = where.get("queue")
    key = queue.routing_key if queue else where["routing_key"]
    others = {name: value for name, value in where.items() if name != "queue"}
    return {
        **others,
        "routing_key": calculate_routing_key(seconds, key),
        "exchange": Exchange(_FIRST, type="topic"),
    }


def bind_to_delays(app: Celery, connection: Any, queues: Iterable[Queue]) -> None:
    """Create RabbitMQ's delay queues, unless a worker has, and bind `queues` to the exchange for due messages.

    `connection` is an `amqp.Connection`.
    """
    from kombu.transport import native_delayed_delivery

    if not exists_exchange(connection, _FIRST):
        kind = app.conf.broker_native_delayed_delivery_queue_type
        with app.connection_for_write() as own:
            native_delayed_delivery.declare_native_delayed_delivery_exchanges_and_queues(own, kind)
    for queue in queues:
        bind_if_allowed(
            connection,
            queue=queue.name,
            exchange=native_delayed_delivery.CELERY_DELAYED_DELIVERY_EXCHANGE,
            routing_key=f"#.{queue.routing_key}",
        )
