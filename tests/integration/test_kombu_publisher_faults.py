"""A RabbitMQ that fails: nothing is lost, what comes twice has the same id, and it goes on by itself."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Exchange, Queue
from kombu import transport as transports
from structlog.testing import capture_logs

from harness.machine_servers import RabbitMQServer
from harness.waiting import at_most, wait_until
from listener.core.publisher import BrokerError, StoppedError
from tests.support.proxy import Fault, Proxy
from tests.support.publishing import change, changes, fire, in_background, position, router_to, waits
from tests.support.rabbitmq import QUORUM, drain, kombu_publisher, open_channel, row_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.publish.kombu.publisher import KombuPublisher
    from tests.conftest import Broker


@pytest.fixture
def queue() -> str:
    """A queue of the test's own: the server is shared."""
    return f"queue-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(rabbitmq_server: RabbitMQServer) -> Iterator[Proxy]:
    with Proxy(rabbitmq_server.port) as running:
        yield running


def _url(proxy: Proxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}//"


def _publish(publisher: KombuPublisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.publish(fire(router_to(), [change(number)]), checkpoint=position(number))


@pytest.mark.parametrize("confirm_publish", [True, False])
def test_what_was_not_confirmed_is_sent_again_whatever_the_settings_say_of_confirms(
    confirm_publish: bool, proxy: Proxy, rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    options = {"confirm_publish": confirm_publish}
    with kombu_publisher(_url(proxy), broker, queue, broker_transport_options=options) as publisher:
        _publish(publisher, 1, 1)
        proxy.fail(Fault.LOSE_REQUEST, at=b"tests.task")
        _publish(publisher, 2, 2)
        proxy.fail(Fault.LOSE_ANSWER, at=b"tests.task")
        _publish(publisher, 3, 3)
        assert proxy.faults == 2
    found = drain(rabbitmq_server, queue)
    assert row_ids(found) == [1, 2, 3, 3]
    assert found[2]["correlation_id"] == found[3]["correlation_id"]


def test_of_a_large_batch_only_the_part_without_confirmation_is_sent_again(
    proxy: Proxy, rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(_url(proxy), broker, queue) as publisher:
        _publish(publisher, 0, 0)
        proxy.fail(Fault.LOSE_REQUEST, at=b'{"id": 2900}')
        publisher.publish(fire(router_to(), changes(1, 3_000)), checkpoint=position(3_000))
        assert proxy.faults == 1
    found = row_ids(drain(rabbitmq_server, queue))
    assert set(found) == set(range(3_001))
    assert len(found) < 5_000


def test_a_half_open_connection_is_noticed_by_its_missing_heartbeats(
    proxy: Proxy, rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(_url(proxy), broker, queue, broker_heartbeat=1) as publisher:
        _publish(publisher, 1, 1)
        proxy.fail(Fault.HOLD_REQUEST, at=b"tests.task")
        _publish(publisher, 2, 2)
    assert row_ids(drain(rabbitmq_server, queue)) == [1, 2]


def test_an_idle_connection_is_kept_alive(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    """Without heartbeats the broker hangs up after three seconds."""
    done = threading.Event()

    def idle(publisher: KombuPublisher) -> None:
        while not done.wait(0.05):
            publisher.publish((), checkpoint=position(1))

    with kombu_publisher(rabbitmq_server.url, broker, queue, broker_heartbeat=1) as publisher:
        _publish(publisher, 1, 1)
        with in_background(lambda: idle(publisher)):
            started, before = time.monotonic(), _connections(rabbitmq_server)
            while time.monotonic() - started < 5:
                assert _connections(rabbitmq_server) == before != ""
            done.set()


def _connections(server: RabbitMQServer) -> str:
    return server.control("list_connections", "name")


@pytest.mark.parametrize("transport", ["kombu.transport.pyamqp", "cdc_tasks.broker.rabbitmq.transport"])
def test_a_broker_without_memory_is_waited_for(
    transport: str,
    rabbitmq_server: RabbitMQServer,
    broker: Broker,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(transports.TRANSPORT_ALIASES, "amqp", f"{transport}:Transport")
    monkeypatch.setattr(transports, "_transport_cache", {})
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher, capture_logs() as logs:
        _publish(publisher, 1, 1)
        rabbitmq_server.control("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            calls = fire(router_to(), changes(2, 3000, text="x" * 3000))
            os.kill(rabbitmq_server.pid, signal.SIGSTOP)  # it is slow to notice the alarm
            with in_background(lambda: publisher.publish(calls, checkpoint=position(3000))) as publishing:
                try:
                    wait_until(lambda: _is_full(publisher), what="the socket to be full")
                finally:
                    os.kill(rabbitmq_server.pid, signal.SIGCONT)
                wait_until(lambda: waits(logs, "accepts no messages"), what="it to be blocked")
                assert not publishing.done()
                rabbitmq_server.control("set_vm_memory_high_watermark", "0.4")
        finally:
            rabbitmq_server.control("set_vm_memory_high_watermark", "0.4")
    # At least once: where a busy machine costs the connection, what was not confirmed comes again.
    assert list(dict.fromkeys(row_ids(drain(rabbitmq_server, queue)))) == list(range(1, 3001))


def _is_full(publisher: KombuPublisher) -> bool:
    """Return whether no more can be written to the socket now."""
    _, writable, _ = select.select([], [publisher._sender._channel.connection.transport.sock], [], 0)
    return not writable


def test_a_queue_that_is_full_and_says_so_is_waited_for(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    arguments = {**QUORUM, "x-max-length": 5, "x-overflow": "reject-publish"}
    settings: dict[str, Any] = {"task_queues": [Queue(queue, queue_arguments=arguments)]}
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue, **settings) as publisher,
        capture_logs() as logs,
        in_background(lambda: _publish(publisher, 1, 50)) as publishing,
    ):
        wait_until(lambda: waits(logs, "refuses messages"), what="it to be refused")
        found = []
        while not publishing.done():
            found += row_ids(drain(rabbitmq_server, queue))
        publishing.result()
    found += row_ids(drain(rabbitmq_server, queue))
    assert list(dict.fromkeys(found)) == list(range(1, 51))


def test_a_queue_that_somebody_deletes_is_declared_again(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        _publish(publisher, 1, 1)
        with open_channel(rabbitmq_server) as channel:
            channel.queue_delete(queue)
        _publish(publisher, 2, 2)
    assert row_ids(drain(rabbitmq_server, queue)) == [2]


def test_a_broker_that_is_killed_in_the_middle_loses_nothing(broker: Broker, queue: str) -> None:
    # A quorum queue that is a second old does not survive a kill of its only node.
    settings: dict[str, Any] = {"task_queues": [Queue(queue)]}
    with RabbitMQServer() as server, kombu_publisher(server.url, broker, queue, **settings) as publisher:
        with in_background(lambda: _publish(publisher, 1, 1000)) as publishing:
            wait_until(lambda: _published(broker) > 100, what="some changes", timeout=30)
            server.kill()
            server.start()
            publishing.result(at_most(120))
        found = drain(server, queue)
    assert list(dict.fromkeys(row_ids(found))) == list(range(1, 1001))
    assert len({message["correlation_id"] for message in found}) == 1000


def _published(broker: Broker) -> int:
    position = broker.cache.hget("cdc:test:checkpoint", "position")
    return int(position.decode().split("/")[1].split(":")[0], 16) if position else 0


def test_stopping_while_the_broker_is_away_ends_the_wait(proxy: Proxy, broker: Broker, queue: str) -> None:
    with kombu_publisher(_url(proxy), broker, queue) as publisher, capture_logs() as logs:
        proxy.refuse()
        with in_background(lambda: _publish(publisher, 1, 1)) as publishing:
            wait_until(lambda: waits(logs), what="it to wait")
            publisher.stop()
            with pytest.raises(StoppedError):
                publishing.result(at_most(10))


def test_a_task_that_no_queue_would_take_is_an_error(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    exchange = Exchange(f"exchange-{queue}", type="topic")
    settings: dict[str, Any] = {
        "task_queues": [Queue(queue, exchange, routing_key="ticket.*", queue_arguments=QUORUM)],
        "task_routes": {"tests.*": {"exchange": exchange.name, "routing_key": "user.new"}},
    }
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue, **settings) as publisher,
        pytest.raises(BrokerError, match="no queue") as raised,
    ):
        _publish(publisher, 1, 1)
    assert "task_routes" in (raised.value.hint or "")


@pytest.mark.parametrize("exchange_type", ["direct", "topic"])
def test_a_queue_that_somebody_made_in_another_way_is_taken_as_it_is(
    exchange_type: str, rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    exchange = Exchange(f"exchange-{queue}", type="topic")
    settings: dict[str, Any] = {
        "task_queues": [Queue(queue, exchange, routing_key=queue, queue_arguments=QUORUM)]
    }
    with open_channel(rabbitmq_server) as channel:
        channel.queue_declare(queue, durable=True, auto_delete=False)
        channel.exchange_declare(exchange.name, exchange_type, durable=True, auto_delete=False)
    with kombu_publisher(rabbitmq_server.url, broker, queue, **settings) as publisher:
        _publish(publisher, 1, 3)
    assert row_ids(drain(rabbitmq_server, queue)) == [1, 2, 3]
    assert f"{queue}\tclassic" in rabbitmq_server.control("list_queues", "name", "type")


@pytest.mark.parametrize(
    ("login", "hint"), [("guest:wrong@{}//", "password"), ("guest:guest@{}/nowhere", "rabbitmqctl add_vhost")]
)
def test_a_broker_that_refuses_us_is_an_error_with_its_hint(
    login: str, hint: str, rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    url = "amqp://" + login.format(f"127.0.0.1:{rabbitmq_server.port}")
    with kombu_publisher(url, broker, queue) as publisher, pytest.raises(BrokerError) as raised:
        _publish(publisher, 1, 1)
    assert hint in (raised.value.hint or "")
    assert "wrong" not in str(raised.value)


def test_a_cache_that_is_away_is_waited_for(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher, capture_logs() as logs:
        broker.client.config_set("maxmemory", 1)
        try:
            with in_background(lambda: _publish(publisher, 1, 1)) as publishing:
                wait_until(lambda: waits(logs, "maxmemory"), what="it to wait for memory")
                assert not publishing.done()
                broker.client.config_set("maxmemory", 0)
        finally:
            broker.client.config_set("maxmemory", 0)
    assert row_ids(drain(rabbitmq_server, queue)) == [1]
