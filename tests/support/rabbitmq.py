"""RabbitMQ for the tests of the publishers: the messages in a queue, as they are on the wire."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import amqp
from kombu import Queue

from harness.waiting import at_most
from listener.publish.kombu.publisher import KombuPublisher
from listener.publish.spans import Spans
from tests.support.publishing import SOURCE, celery_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker

__all__ = ["QUORUM", "drain", "kombu_publisher", "open_channel", "publisher_of", "row_ids"]

QUORUM = {"x-queue-type": "quorum"}


@contextmanager
def kombu_publisher(
    url: str,
    broker: Broker,
    queue: str,
    *,
    max_queue: int | None = None,
    max_parked: int | None = None,
    spans: Spans | None = None,
    **settings: Any,
) -> Iterator[KombuPublisher]:
    """Open a publisher whose tasks go to a quorum queue of that name."""
    defaults = {
        "task_queues": [Queue(queue, routing_key=queue, queue_arguments=QUORUM)],
        "task_default_queue": queue,
    }
    app = celery_app(url, **{**defaults, **settings})
    with publisher_of(app, broker, max_queue=max_queue, max_parked=max_parked, spans=spans) as publisher:
        yield publisher


@contextmanager
def publisher_of(
    app: Celery,
    broker: Broker,
    *,
    max_queue: int | None = None,
    max_parked: int | None = None,
    spans: Spans | None = None,
) -> Iterator[KombuPublisher]:
    """Open a publisher as the loop does, with its checkpoint read."""
    publisher = KombuPublisher(
        app, broker.cache_url, name="test", max_queue=max_queue, max_parked=max_parked, spans=spans
    )
    try:
        publisher.attach(SOURCE)
        yield publisher
    finally:
        publisher.close()


@contextmanager
def open_channel(server: RabbitMQServer, vhost: str = "/") -> Iterator[amqp.Channel]:
    address = f"127.0.0.1:{server.port}"
    with amqp.Connection(host=address, virtual_host=vhost) as connection, connection.channel() as channel:
        yield channel


def drain(server: RabbitMQServer, queue: str, vhost: str = "/") -> list[dict[str, Any]]:
    """Remove and return all messages of a queue, next one first."""
    found: list[amqp.Message] = []
    with open_channel(server, vhost) as channel:
        count = channel.queue_declare(queue, passive=True).message_count

        def take(message: amqp.Message) -> None:
            if len(found) < count:  # later messages go back
                found.append(message)
                channel.basic_ack(message.delivery_tag)

        channel.basic_consume(queue, callback=take)
        while len(found) < count:
            channel.connection.drain_events(timeout=at_most(20))
    return [{"body": json.loads(message.body), **message.properties} for message in found]


def row_ids(messages: list[dict[str, Any]]) -> list[int]:
    """Return the row ids of messages."""
    return [message["body"][0][0]["after"]["id"] for message in messages]
