"""A queue that is too long, on a connection to RabbitMQ that breaks meanwhile."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kombu import Queue

from listener.core.publisher import BrokerAwayError
from listener.core.retry import Retry
from listener.publish.kombu.sender import Delivery, KombuSender
from tests.support.publishing import celery_app, changes, fire, router_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.machine_servers import RabbitMQServer


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def sender(rabbitmq_server: RabbitMQServer, queue: str) -> Iterator[KombuSender]:
    """A sender that has sent five messages."""
    app = celery_app(rabbitmq_server.url)
    with closing(KombuSender(app, Retry("broker"))) as sender:
        sender.finish(Delivery(fire(router_to(queue=queue), changes(1, 5))))
        assert sender.lengths() == {queue: 5}
        yield sender


def test_a_new_connection_knows_the_queues_of_the_one_before(sender: KombuSender, queue: str) -> None:
    sender.close()
    assert sender.lengths() == {queue: 5}


def test_a_queue_that_is_deleted_meanwhile_is_waited_for_no_more(
    sender: KombuSender, rabbitmq_server: RabbitMQServer, queue: str
) -> None:
    with celery_app(rabbitmq_server.url).connection_for_write() as connection:
        Queue(queue, channel=connection.default_channel).delete()
    with pytest.raises(BrokerAwayError):
        sender.lengths()
    assert sender.lengths() == {}
