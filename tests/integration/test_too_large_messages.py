"""A message that the broker will never take is parked, and the stream goes on."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Queue
from structlog.testing import capture_logs

from listener.core.publisher import BrokerError
from listener.publish.parked import ParkedChange, parked_key, read_parked
from tests.support.operators import Operator
from tests.support.publishing import change, fire, ids, messages, position, redis_publisher, router_to
from tests.support.rabbitmq import QUORUM, drain, kombu_publisher, open_channel, row_ids
from tests.support.routes import refused as refused_routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker

_SMALL = 100_000  # bytes
_USUAL = 128 * 1024 * 1024
_MEGABYTE = 1024 * 1024  # the smallest limit that Redis accepts


@pytest.fixture
def queue() -> str:
    """A queue of the test's own: the server is shared."""
    return f"queue-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def small_messages(rabbitmq_server: RabbitMQServer) -> Iterator[None]:
    _limit(rabbitmq_server, _SMALL)
    yield
    _limit(rabbitmq_server, _USUAL)


def _limit(server: RabbitMQServer, size: int) -> None:
    server.control("eval", f"application:set_env(rabbit, max_message_size, {size}).")


@pytest.fixture
def small_bulk(broker: Broker) -> Iterator[None]:
    broker.client.config_set("proto-max-bulk-len", _MEGABYTE)
    yield
    broker.client.config_set("proto-max-bulk-len", 512 * _MEGABYTE)


def _parked(client: Any, name: str = "test") -> dict[str, ParkedChange]:
    found = read_parked(client, parked_key(f"cdc:{name}"))
    return {each.change.position: each for each in found}


@pytest.mark.usefixtures("small_messages")
def test_what_is_too_large_for_rabbitmq_is_parked_whole_and_the_others_arrive(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    some = [change(1), change(2, text="x" * _SMALL), change(3), change(4, text="y" * _SMALL), change(5)]
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher, capture_logs() as logs:
        publisher.publish(fire(router_to(), some), checkpoint=position(5))
        publisher.publish(fire(router_to(), [change(6)]), checkpoint=position(6))
        publisher.publish(fire(router_to(), [change(7, text="z" * _SMALL)]), checkpoint=position(7))
    assert list(dict.fromkeys(row_ids(drain(rabbitmq_server, queue)))) == [1, 3, 5, 6]
    found = _parked(broker.cache)
    assert {each.change.row["id"]: len(each.change.row["text"]) for each in found.values()} == {
        2: _SMALL,
        4: _SMALL,
        7: _SMALL,
    }
    assert f"its limit is {_SMALL}" in found[position(2)].error
    assert [each["error"] for each in logs if each["event"] == "parked"] == ["MessageTooLargeError"] * 3
    assert broker.cache.hget("cdc:test:checkpoint", "position") == position(7).encode()


@pytest.mark.usefixtures("small_messages")
def test_what_is_confirmed_before_a_known_limit_is_met_is_not_sent_again(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        publisher.publish(fire(router_to(), [change(1, text="x" * _SMALL)]), checkpoint=position(1))
        some = [*map(change, range(2, 300)), change(300, text="x" * _SMALL)]
        publisher.publish(fire(router_to(), some), checkpoint=position(300))
    assert row_ids(drain(rabbitmq_server, queue)) == list(range(2, 300))


@pytest.mark.usefixtures("small_messages")
def test_batches_keep_within_a_known_limit(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    router = router_to(batch=50)
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        for first in (1, 51):
            some = [change(number, text="x" * 10_000) for number in range(first, first + 50)]
            publisher.publish(fire(router, some), checkpoint=position(first + 49))
    arrived = [each["after"]["id"] for task in drain(rabbitmq_server, queue) for each in task["body"][0][0]]
    (parked,) = _parked(broker.cache).values()  # the first was too large, and its error had the limit
    assert parked.arguments is not None
    kept = [each["after"]["id"] for each in parked.arguments[0]]
    assert [*kept, *arrived] == list(range(1, 101))


def test_a_refusal_for_another_reason_is_no_advice_to_delete_a_queue(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    settings: dict[str, Any] = {"task_routes": {"tests.*": {"expiration": -1}}}
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue, **settings) as publisher,
        pytest.raises(BrokerError, match="expiration") as raised,
    ):
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    assert "task_routes" in (raised.value.hint or "")
    assert "delete" not in (raised.value.hint or "")


def test_what_was_too_large_for_rabbitmq_is_listed_and_replayed_once_the_limit_is_raised(
    rabbitmq_server: RabbitMQServer, broker: Broker, small_messages: None
) -> None:
    with open_channel(rabbitmq_server) as channel:
        channel.queue_delete("cdc_bulk")
    settings: dict[str, Any] = {
        "task_queues": [Queue("cdc_bulk", routing_key="cdc_bulk", queue_arguments=QUORUM)]
    }
    some = [change(number, text=letter * _SMALL) for number, letter in ((1, "x"), (2, "y"))]
    with kombu_publisher(rabbitmq_server.url, broker, "cdc_bulk", **settings) as publisher:
        publisher.publish(fire(refused_routes.setup(), some[:1]), checkpoint=position(1))
        publisher.publish(fire(refused_routes.batched(), some[1:]), checkpoint=position(2))
    one = _operator(rabbitmq_server.url, broker, "setup")
    whole = one.asks("parked", "list")
    assert [(each["task"], each["change"]["position"]) for each in whole] == [
        ("tests.task", position(1)),
        ("tests.task", position(2)),
    ]
    refused = one.types("parked", "replay", "--all")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "stays parked" in refused.stderr

    _limit(rabbitmq_server, _USUAL)
    sent = one.types("parked", "replay", "--all")
    assert sent.returncode == 0, sent.stderr
    assert one.asks("parked", "list") == []
    first, second = (task["body"][0] for task in drain(rabbitmq_server, "cdc_bulk"))
    assert first == [some[0].to_message()]
    assert second == [[some[1].to_message()]]


def _operator(url: str, broker: Broker, routes: str) -> Operator:
    return Operator(
        DATABASE_URL="postgresql://nobody@127.0.0.1:1/none",
        CELERY_BROKER_URL=url,
        CACHE_URL=broker.cache_url,
        CDC_NAME="test",
        CDC_ROUTES=f"tests.support.routes.refused:{routes}",
    )


@pytest.mark.usefixtures("small_bulk")
@pytest.mark.parametrize("pipelined", [False, True])
def test_what_is_too_large_for_redis_is_parked_in_the_step_of_its_batch(
    broker: Broker, *, pipelined: bool
) -> None:
    fits = "x" * (_MEGABYTE * 9 // 10)  # as a parked change, but not in base64
    some = [change(1), change(2, text=fits), change(3)]
    with redis_publisher(broker.url) as publisher, capture_logs() as logs:
        publisher.publish(fire(router_to(), some), checkpoint=position(3), pipelined=pipelined)
        publisher.publish(fire(router_to(), [change(4)]), checkpoint=position(4), pipelined=pipelined)
        publisher.flush()
    assert ids(broker.client, "celery") == [1, 3, 4]
    (parked,) = _parked(broker.client).values()
    assert parked.change == change(2, text=fits)
    assert [each["position"] for each in logs if each["event"] == "parked"] == [position(2)]


@pytest.mark.usefixtures("small_bulk")
def test_what_is_too_large_even_to_be_parked_leaves_its_short_values(broker: Broker) -> None:
    huge = change(1, name="Anna", text="x" * _MEGABYTE)
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to(), [huge, change(2)]), checkpoint=position(2))
    assert ids(broker.client, "celery") == [2]
    (parked,) = _parked(broker.client).values()
    assert parked.is_shortened
    assert parked.change.after == {"id": 1, "name": "Anna"}
    assert parked.change.unavailable == ("text",)
    one = _operator(broker.url, broker, "setup")
    assert one.asks("parked", "list")[0]["is_shortened"]
    done = one.types("parked", "replay", parked.id)
    assert done.returncode == 1
    assert "by its key" in done.stderr
    assert f"python -m listener parked drop {parked.id}" in done.stderr


@pytest.mark.usefixtures("small_messages", "small_bulk")
def test_a_row_that_neither_rabbitmq_nor_redis_takes_leaves_its_short_values(
    rabbitmq_server: RabbitMQServer, broker: Broker, queue: str
) -> None:
    with kombu_publisher(rabbitmq_server.url, broker, queue) as publisher:
        some = [change(1, text="x" * _MEGABYTE), change(2)]
        publisher.publish(fire(router_to(), some), checkpoint=position(2))
    (parked,) = _parked(broker.cache).values()
    assert (parked.change.after, parked.change.unavailable) == ({"id": 1}, ("text",))
    assert row_ids(drain(rabbitmq_server, queue)) == [2]


@pytest.mark.usefixtures("small_bulk")
def test_a_row_too_large_for_a_batch_is_parked_and_the_batches_keep_within_the_limit(broker: Broker) -> None:
    some = [change(1), change(2, text="x" * (_MEGABYTE * 9 // 10)), *_wide(3, 10)]
    with redis_publisher(broker.url, options={"batch_wait": 0}) as publisher:
        publisher.publish(fire(router_to(batch=50), some), checkpoint=position(10))
        publisher.publish((), checkpoint=position(11))
    arrived = [task["body"][0][0] for task in messages(broker.client, "celery")]
    assert [each["after"]["id"] for batch in arrived for each in batch] == [1, *range(3, 11)]
    assert max(len(json.dumps(batch)) for batch in arrived) < _MEGABYTE
    (parked,) = _parked(broker.client).values()
    assert parked.change.row["id"] == 2


def _wide(first: int, last: int) -> list[Any]:
    return [change(number, text="x" * 300_000) for number in range(first, last + 1)]


def test_a_limit_that_is_raised_counts_from_the_next_step_on(broker: Broker, small_bulk: None) -> None:
    large = "x" * _MEGABYTE
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to(), [change(1, text=large)]), checkpoint=position(1))
        broker.client.config_set("proto-max-bulk-len", 512 * _MEGABYTE)
        publisher.publish(fire(router_to(), [change(2, text=large)]), checkpoint=position(2))
    assert ids(broker.client, "celery") == [2]
