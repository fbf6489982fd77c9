"""How many connections a process has to a Redis broker."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import redis
from kombu import Connection

from cdc_tasks.broker.redis.transport import Transport
from cdc_tasks.broker.redis.wake_up import seconds_to_wait
from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from tests.conftest import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A server of the test's own: on the shared one, connections of other tests in this process may be open."""
    with (
        ValkeyServer() as server,
        redis.Redis.from_url(server.url) as client,
        redis.Redis.from_url(server.url_of(1)) as cache,
    ):
        yield Broker(server=server, client=client, cache=cache)


def test_all_channels_of_a_process_share_a_connection_and_the_last_one_closes_it(broker: Broker) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(_connection(broker))
            for _ in range(3):
                _publish(connection)
                stack.enter_context(connection.channel())
        assert _connections(broker) == 1
    wait_until(lambda: _connections(broker) == 0, what="it to be closed")
    assert broker.client.llen("queue") == 9


def test_one_that_is_closed_leaves_the_others_theirs(broker: Broker) -> None:
    with _connection(broker) as one:
        _publish(one)
        with _connection(broker) as other:
            _publish(other)
        _publish(one)
    assert broker.client.llen("queue") == 3


def test_a_channel_that_consumed_leaves_no_connection(broker: Broker) -> None:
    with _connection(broker) as connection, connection.SimpleQueue("queue") as queue:
        queue.put("message")
        assert queue.get(timeout=10).payload == "message"  # not acknowledged: it goes back
    wait_until(lambda: _connections(broker) == 0, what="all to be closed")
    assert broker.client.llen("queue") == 1


def test_threads_and_forked_processes_do_not_get_into_each_others_way(broker: Broker) -> None:
    with _connection(broker) as connection:
        _publish(connection)
        child = os.fork()
        if not child:
            os._exit(_publish_and_count(broker))
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(lambda _: _publish_alone(broker), range(40)):
                pass
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        _publish(connection)
    assert broker.client.llen("queue") == 1 + 20 + 40 + 1


def _publish_and_count(broker: Broker) -> int:
    try:
        for _ in range(20):
            _publish_alone(broker)
    except BaseException:  # noqa: BLE001  # the child must not go on with the test
        return 1
    return 0


def _publish_alone(broker: Broker) -> None:
    with _connection(broker) as connection:
        _publish(connection)


@pytest.mark.parametrize(("lease", "seconds"), [(60, 30), (3600, 30), (6, 3), (1, 1), (0.5, 1)])
def test_a_wait_ends_before_its_inboxes_lease(lease: float, seconds: int) -> None:
    assert seconds_to_wait(lease) == seconds


def _connection(broker: Broker) -> Connection:
    return Connection(broker.url, transport=Transport)


def _publish(connection: Connection) -> None:
    with connection.Producer() as producer:
        producer.publish("message", routing_key="queue")


def _connections(broker: Broker) -> int:
    """Return the number of connections without this one."""
    return len(broker.client.client_list()) - 1
