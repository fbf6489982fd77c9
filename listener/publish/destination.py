"""The queue of a route's tasks, shown before anything is sent."""

from __future__ import annotations

from celery import Celery

from cdc_tasks.broker.rabbitmq.partitions import partitions_of
from cdc_tasks.routing.router import Route
from listener.publish.kombu.message import partition_of
from listener.publish.task_message import make_message

__all__ = ["destination"]


def destination(app: Celery, route: Route, key: str | None) -> str:
    """Return the name of the queue, or exchange and routing key, without contacting a server. Raise EnvelopeError."""
    options = make_message(app, route).options
    if key is not None and _is_rabbitmq(app):
        return partition_of(list(partitions_of(app)), route, key)
    queue = options.get("queue")
    if queue is not None:
        return str(getattr(queue, "name", queue))
    return f"{options.get('exchange') or ''}/{options.get('routing_key') or ''}"


def _is_rabbitmq(app: Celery) -> bool:
    with app.connection_for_write() as connection:
        return bool(connection.transport.driver_type == "amqp")
