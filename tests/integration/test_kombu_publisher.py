"""RabbitMQ has every task at least once, each with the id that it has on every replay."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from structlog.testing import capture_logs

from cdc_tasks import install
from cdc_tasks.broker.rabbitmq.partitions import partition_for, partition_queues
from cdc_tasks.broker.rabbitmq.queues import existing_queue
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from harness.waiting import at_most, wait_until
from listener.core.findings import State
from listener.core.publisher import CheckpointMovedError
from listener.publish.check_broker import check_broker
from listener.publish.parked import parked_key, read_parked
from listener.publish.queue_limit import Pause
from listener.publish.task_message import EnvelopeError
from listener.router import BinlogRouter, EventType
from tests.support.publishing import (
    SOURCE,
    celery_app,
    change,
    changes,
    fire,
    in_background,
    pop_times,
    position,
    router_to,
)
from tests.support.rabbitmq import QUORUM, drain, kombu_publisher, open_channel, publisher_of, row_ids

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from listener.publish.kombu.publisher import KombuPublisher
    from tests.conftest import Broker


@pytest.fixture
def queue() -> str:
    """A queue of the test's own: the server is shared."""
    return f"queue-{uuid.uuid4().hex[:8]}"


def _publish(publisher: KombuPublisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.publish(fire(router_to(), [change(number)]), checkpoint=position(number))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"task_routes": {"tests.*": {"priority": 5}}},
        {"task_default_delivery_mode": "transient"},
        {"task_compression": "gzip"},
        {"broker_transport_options": {"confirm_publish": True}},
        {"result_backend": "rpc://"},
        {"task_send_sent_event": True},
    ],
    ids=str,
)
def test_a_message_is_the_one_that_celery_sends_with(
    settings: dict[str, Any], rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    _assert_equal_to_celerys(
        celery_app(rabbitmq_server.url, task_default_queue=queue, **settings), rabbitmq_server, broker, queue
    )


def test_a_message_is_the_one_that_celery_sends_through_a_topic_exchange(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    exchange = Exchange(f"exchange-{queue}", type="topic")
    app = celery_app(
        rabbitmq_server.url,
        task_queues=[Queue(queue, exchange, routing_key="ticket.#", queue_arguments=QUORUM)],
        task_routes={"tests.*": {"exchange": exchange.name, "routing_key": "ticket.new"}},
    )
    with app.connection_for_write() as connection:
        app.amqp.queues[queue](connection.default_channel).declare()
    _assert_equal_to_celerys(app, rabbitmq_server, broker, queue)


def _assert_equal_to_celerys(app: Celery, server: RabbitMQServer, broker: Broker, queue: str) -> None:
    router = router_to()
    event = change(1, title='A 100 % "quoted" Ünïcode\n\ttitle', big=2**70, nothing=None)
    with publisher_of(app, broker) as publisher:
        publisher.publish(fire(router, [event]), checkpoint=event.position)
    task_id = f"{event.id}-{router.routes[0].id}"
    with app.connection_for_write() as connection:
        app.send_task("tests.task", [event.to_message()], task_id=task_id, connection=connection)
    with app.connection_for_write() as connection, connection.channel() as channel:
        bound = app.amqp.queues[queue](channel)
        ours, celerys = (bound.get(no_ack=True, accept=["json"]) for _ in range(2))
    celerys.headers.update(argsrepr="<public.tickets insert 0/1:0>", kwargsrepr="{}")
    assert ours.decode() == celerys.decode()
    assert ours.properties == celerys.properties
    assert ours.delivery_info["routing_key"] == celerys.delivery_info["routing_key"]


@pytest.mark.parametrize(
    "sending", [{"priority": 4, "expires": 600}, {"countdown": 600}, {"countdown": 1.2}], ids=str
)
def test_a_routes_options_are_those_of_our_apps_own_call_and_rabbitmq_keeps_what_is_due_later(
    sending: dict[str, Any], rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    """No worker has made the queues for delays."""
    app = install(Celery("ours", broker=rabbitmq_server.url, set_as_current=False))
    exchange = Exchange(f"exchange-{queue}", type="topic")
    arguments = QUORUM if sending.get("countdown") == 1.2 else {}
    app.conf.update(
        task_queues=[Queue(queue, exchange, routing_key=queue, queue_arguments=arguments)],
        task_default_queue=queue,
    )
    router = router_to(events="insert", args=["id"], kwargs={"row": "id"}, **sending)
    with publisher_of(app, broker) as publisher:
        publisher.publish(fire(router, [change(1)]), checkpoint=position(1))
    task_id = f"{change(1).id}-{router.routes[0].id}"
    app.send_task("tests.task", [1], {"row": 1}, task_id=task_id, **sending)
    with app.connection_for_write() as connection, connection.channel() as channel:
        bound = app.amqp.queues[queue](channel)
        ours, celerys = (_next(bound) for _ in range(2))
    celerys.headers.update(argsrepr="<public.tickets insert 0/1:0>", kwargsrepr="{}")
    times = zip(*(pop_times(each.headers) for each in (ours, celerys)), strict=True)
    assert all(mine[1] == theirs[1] and mine[0] <= theirs[0] for mine, theirs in times)
    for each in (ours, celerys):
        for mark in ("x-death", "x-first-death-queue", "x-last-death-queue"):
            each.headers.pop(mark, None)
    assert (ours.decode(), ours.headers, ours.properties) == (
        celerys.decode(),
        celerys.headers,
        celerys.properties,
    )
    assert ours.delivery_info["routing_key"] == celerys.delivery_info["routing_key"]
    assert ("0.1.0." in ours.delivery_info["routing_key"]) == bool(arguments)


def _next(queue: Any) -> Any:
    return wait_until(lambda: queue.get(no_ack=True, accept=["json"]), what="a message")


def test_a_number_goes_through_as_it_is(rabbitmq_server: RabbitMQServer, broker: Broker, queue: str) -> None:
    """Nothing on the way reads it: not even a float's last digit changes."""
    router = router_to(args=lambda _change: [1.10, 2**70])
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        publisher.publish(fire(router, [change(1)]), checkpoint=position(1))
    with open_channel(rabbitmq_server) as channel:
        assert channel.basic_get(queue, no_ack=True).body.startswith("[[1.1, 1180591620717411303424],")


def test_messages_of_any_size_and_of_tables_with_any_name_arrive_whole(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    """A body of more than 128 KiB is sent in several frames."""
    router = router_to(table="*")
    sizes = [1, 131_000, 131_064, 131_065, 400_000, 1_100_000]
    events = [
        change(number * 10_000_000, table=f'100 % of "Ü{number}"', text="x" * size)
        for number, size in enumerate(sizes, 1)
    ]
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        publisher.publish(fire(router, events), checkpoint=position(1))
    found = drain(rabbitmq_server, queue)
    assert [len(message["body"][0][0]["after"]["text"]) for message in found] == sizes
    for message, event in zip(found, events, strict=True):
        headers = message["application_headers"]
        assert headers["argsrepr"] == f"<public.{event.table} insert {event.position}>".replace('"', '\\"')
        assert headers["id"] == headers["root_id"] == message["correlation_id"]
        assert headers["id"].startswith(event.id)


def test_a_task_with_a_key_goes_to_the_partition_of_its_key(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    """Whatever queue its route names."""
    partitions = partition_queues(queue, 3, Exchange(f"exchange-{queue}", type="topic"))
    names = [each.name for each in partitions[1:]]
    keyed, other = (
        router_to(events="insert", key="owner", group="owners", on_failure="hold"),
        router_to(queue="celery"),
    )
    events = [change(number, owner=f"Ünal {number % 5}") for number in range(1, 41)]
    events[1::3] = [replace(each, context={"user": 7, "share": 0.5, "ok": True}) for each in events[1::3]]
    events[2::3] = [
        replace(each, context={"user": 2**62, "name": "Ä", "team": None}) for each in events[2::3]
    ]
    contexts = {each.after["id"]: each.context for each in events if each.after}
    settings: dict[str, Any] = {"task_queues": [Queue("celery"), *partitions]}
    with kombu_publisher(rabbitmq_server.url, broker, "celery", **settings) as publisher:
        publisher.publish(
            [*fire(keyed, events), *fire(other, [change(41)])], checkpoint=position(41), pipelined=True
        )
        publisher.flush()
    found = {name: drain(rabbitmq_server, name) for name in names}
    assert sorted(row_id for each in found.values() for row_id in row_ids(each)) == list(range(1, 41))
    for name, messages in found.items():
        assert row_ids(messages) == sorted(row_ids(messages))
        for message in messages:
            headers, row = message["application_headers"], message["body"][0][0]["after"]
            assert headers["cdc_key"] == f"owners:{row['owner']}"
            assert headers["cdc_key_hold"] is True
            assert headers.get(CONTEXT_HEADER) == contexts[row["id"]] == message["body"][0][0].get("context")
            assert partition_for(headers["cdc_key"], names) == name
    (unkeyed,) = drain(rabbitmq_server, "celery")
    assert "cdc_key" not in unkeyed["application_headers"]


def test_an_app_with_our_parts_has_queues_that_keep_the_order_and_check_asks_for_a_worker(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    app = celery_app(rabbitmq_server.url, task_default_queue=queue)
    app.main = queue
    install(app)
    router = router_to(events="insert", key="id")
    findings = {each.what: each for each in check_broker(app, router.routes, durability="memory")}
    counted = f"cdc_{queue}_keyed"
    assert findings[f"queue {counted}"].code == "no_consumer"
    assert f"worker -Q {counted}" in str(findings[f"queue {counted}"].hint)
    assert findings[f"queue {counted}_7"].state is State.OK
    with publisher_of(app, broker) as publisher:
        publisher.publish(fire(router, [change(number) for number in range(20)]), checkpoint=position(20))
    names = [f"{counted}_{number}" for number in range(8)]
    with open_channel(rabbitmq_server) as channel:
        found = [existing_queue(channel.connection, name) for name in names]
    assert sum(each.message_count for each in found if each is not None) == 20
    assert list(app.amqp.queues) == [
        queue
    ]  # Celery looks there for how retries wait, and what a worker takes


def test_a_key_without_a_queue_that_keeps_its_order_is_an_error(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue) as publisher,
        pytest.raises(EnvelopeError, match="no queues on RabbitMQ") as raised,
    ):
        publisher.publish(fire(router_to(events="insert", key="id"), [change(1)]), checkpoint=position(1))
    assert raised.value.code == "no_partitions"


def test_a_batch_arrives_in_its_order_and_outlives_the_broker(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        publisher.publish(fire(router_to(), changes(1, 2000)), checkpoint=position(2000))
    found = drain(rabbitmq_server, queue)
    assert row_ids(found) == list(range(1, 2001))
    assert {message["delivery_mode"] for message in found} == {2}


def test_queues_are_declared_as_the_settings_say(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        _publish(publisher, 1, 1)
    listed = rabbitmq_server.control("list_queues", "name", "type", "durable")
    assert f"{queue}\tquorum\ttrue" in listed


def test_the_checkpoint_and_what_is_parked_are_in_the_cache(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    router = BinlogRouter()
    router.register(
        "public", "tickets", EventType.ALL, "tests.bad", args=lambda change: [change.row["missing"]]
    )
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        publisher.publish(fire(router, changes(1, 2)), checkpoint=position(2))
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        assert publisher.attach(SOURCE) == position(2)
    assert len(list(read_parked(broker.cache, parked_key("cdc:test")))) == 2


def test_another_listener_with_our_name_is_noticed(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue) as first,
        kombu_publisher(rabbitmq_server.url, broker, queue) as second,
    ):
        _publish(first, 1, 1)
        with pytest.raises(CheckpointMovedError):
            _publish(second, 1, 1)


def test_a_change_that_is_published_again_has_the_task_id_it_had(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    for _run in range(2):
        with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
            _publish(publisher, 1, 3)
        broker.cache.flushall()
    found = [message["correlation_id"] for message in drain(rabbitmq_server, queue)]
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


def test_reading_pauses_while_a_queue_is_too_long(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    calls = fire(router_to(), changes(1, 50))
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue, max_queue=30) as publisher,
        capture_logs() as logs,
        in_background(lambda: publisher.publish(calls, checkpoint=position(50))) as publishing,
    ):
        wait_until(lambda: any(line["event"] == "paused" for line in logs), what="the pause")
        assert not publishing.done()
        note = wait_until(lambda: broker.cache.get("cdc:test:paused"), what="the note of it")
        assert Pause.parse(note).longest_queue == 50
        assert row_ids(drain(rabbitmq_server, queue)) == list(range(1, 51))
        publishing.result(at_most(10))
        assert logs[-1]["event"] == "resumed"
        assert not broker.cache.exists("cdc:test:paused")


def test_other_brokers_that_kombu_speaks_with(broker: Broker) -> None:
    app = celery_app("memory://")
    with publisher_of(app, broker) as publisher:
        publisher.publish(fire(router_to(), changes(1, 3)), checkpoint=position(3))
        with app.connection_for_write() as connection:
            queue = connection.SimpleQueue("celery")
            assert [queue.get(timeout=at_most(1)).payload[0][0]["after"]["id"] for _ in range(3)] == [1, 2, 3]
    assert broker.cache.hget("cdc:test:checkpoint", "position") == position(3).encode()
