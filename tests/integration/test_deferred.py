"""What is coalesced or batched is neither lost nor doubled, whatever happens while it is deferred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from harness.waiting import at_most, wait_until
from listener.core.publisher import CheckpointMovedError, StoppedError
from tests.support.proxy import Fault, Proxy
from tests.support.publishing import (
    SOURCE,
    change,
    changes,
    fire,
    in_background,
    messages,
    position,
    redis_publisher,
    router_to,
    waits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from listener.publish.redis.publisher import RedisPublisher
    from listener.router import BinlogRouter
    from tests.conftest import Broker

_LONG = {"batch_wait": 600.0, "coalesce_interval": 600.0}  # nothing is due while the test runs
_SHORT = {"batch_wait": 0.5, "coalesce_interval": 0.2}


@pytest.fixture
def proxy(any_broker: Broker) -> Iterator[Proxy]:
    with Proxy(any_broker.server.port) as running:
        yield running


@pytest.fixture
def batching() -> BinlogRouter:
    return router_to(batch=500)


@pytest.fixture
def coalescing() -> BinlogRouter:
    return router_to(args=lambda change: [change.table], coalesce=True)


def _batches(client: redis.Redis) -> list[list[int]]:
    return [[each["after"]["id"] for each in message["body"][0][0]] for message in messages(client, "celery")]


def _publish(publisher: RedisPublisher, router: BinlogRouter, first: int, last: int) -> None:
    publisher.publish(fire(router, changes(first, last)), checkpoint=position(last))


def _idle_until_nothing_is_deferred(publisher: RedisPublisher, client: redis.Redis, last: int) -> None:
    """Do what the loop does while the source is quiet."""

    def look() -> bool:
        publisher.publish((), checkpoint=position(last))
        return not client.exists("cdc:test:held")

    wait_until(look, what="nothing to be deferred")


def _crash(publisher: RedisPublisher) -> None:
    """End it without a hand-over."""
    publisher._redis.close()


def test_many_inserts_become_few_tasks_in_order_with_none_missing(
    broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(broker.url, options=_LONG) as publisher:
        for first in range(1, 20_001, 777):
            _publish(publisher, batching, first, min(first + 776, 20_000))
    found = _batches(broker.client)
    assert [number for batch in found for number in batch] == list(range(1, 20_001))
    assert [len(batch) for batch in found] == [500] * 40


def test_a_lone_change_is_not_waited_with_for_others(broker: Broker, batching: BinlogRouter) -> None:
    with redis_publisher(broker.url, options=_SHORT) as publisher:
        _publish(publisher, batching, 1, 1)
        _idle_until_nothing_is_deferred(publisher, broker.client, 1)
    assert _batches(broker.client) == [[1]]


def test_a_crash_between_two_publishes_neither_loses_nor_doubles_what_was_deferred(
    any_broker: Broker, batching: BinlogRouter
) -> None:
    for first in range(1, 2001, 300):
        with redis_publisher(any_broker.url, options=_LONG) as publisher:
            last = min(first + 299, 2000)
            _publish(publisher, batching, first, last)
            _crash(publisher)
    with redis_publisher(any_broker.url, options=_LONG) as publisher:
        _idle_until_nothing_is_deferred(publisher, any_broker.client, 2000)
    assert [number for batch in _batches(any_broker.client) for number in batch] == list(range(1, 2001))
    assert not list(any_broker.client.scan_iter("*held*"))


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER])
def test_a_lost_answer_does_not_double_a_batch_that_goes_out_while_the_position_stays(
    fault: Fault, proxy: Proxy, any_broker: Broker, batching: BinlogRouter
) -> None:
    """Only the step's mark tells whether it was done: the position is the same before and after."""
    with redis_publisher(f"redis://127.0.0.1:{proxy.port}/0", options=_SHORT) as publisher:
        _publish(publisher, batching, 1, 3)
        proxy.fail(fault, at=b"LPUSH")
        _idle_until_nothing_is_deferred(publisher, any_broker.client, 3)
        assert proxy.faults == 1
        publisher.publish((), checkpoint=position(4))
    assert _batches(any_broker.client) == [[1, 2, 3]]


def test_the_last_coalesced_task_survives_a_crash(any_broker: Broker, coalescing: BinlogRouter) -> None:
    with redis_publisher(any_broker.url, options=_LONG) as publisher:
        for number in range(1, 51):
            _publish(publisher, coalescing, number, number)
        _crash(publisher)
    assert len(messages(any_broker.client, "celery")) == 1
    with redis_publisher(any_broker.url, options=_LONG) as publisher:
        _idle_until_nothing_is_deferred(publisher, any_broker.client, 50)
    assert [message["body"][0] for message in messages(any_broker.client, "celery")] == [
        ["tickets"],
        ["tickets"],
    ]


def test_a_connection_lost_while_it_is_read_back_does_not_forget_to_watch_the_checkpoint(
    proxy: Proxy, any_broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(any_broker.url, options=_LONG) as first:
        _publish(first, batching, 1, 3)
        _crash(first)
    url = f"redis://127.0.0.1:{proxy.port}/0"
    proxy.fail(Fault.LOSE_REQUEST, at=b"HVALS")
    with (
        redis_publisher(url, options=_LONG) as second,
        redis_publisher(any_broker.url, options=_LONG) as third,
    ):
        assert proxy.faults == 1
        _publish(third, batching, 4, 500)
        with pytest.raises(CheckpointMovedError):
            _publish(second, batching, 4, 500)
        assert second.attach(SOURCE) == position(500)
    assert _batches(any_broker.client) == [[1, 2, 3]]
    (held,) = any_broker.client.scan_iter("cdc:test:held:*")
    assert any_broker.client.llen(held) == 497


def test_a_listener_that_is_stopped_hands_over_what_it_deferred(
    broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(broker.url, options=_LONG) as publisher:
        _publish(publisher, batching, 1, 3)
        publisher.stop()
    assert _batches(broker.client) == [[1, 2, 3]]
    assert not broker.client.exists("cdc:test:held")


def test_a_listener_that_is_stopped_while_the_broker_is_away_leaves_it_for_the_next_start(
    proxy: Proxy, any_broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(f"redis://127.0.0.1:{proxy.port}/0", options=_LONG) as publisher:
        _publish(publisher, batching, 1, 3)
        proxy.refuse()
        publisher.stop()  # else the end would wait for the broker
    with redis_publisher(any_broker.url, options=_LONG) as publisher:
        _idle_until_nothing_is_deferred(publisher, any_broker.client, 3)
    assert _batches(any_broker.client) == [[1, 2, 3]]


def test_a_stop_in_the_middle_of_a_publish_hands_over_nothing_that_will_be_read_again(
    proxy: Proxy, any_broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(f"redis://127.0.0.1:{proxy.port}/0", options=_LONG) as publisher:
        _publish(publisher, batching, 1, 3)
        proxy.refuse()
        with capture_logs() as logs, in_background(lambda: _publish(publisher, batching, 4, 6)) as publishing:
            wait_until(lambda: waits(logs), what="it to wait")
            publisher.stop()
            with pytest.raises(StoppedError):
                publishing.result(at_most(10))
        proxy.refuse(refusing=False)
    with redis_publisher(any_broker.url, options=_LONG) as publisher:
        assert publisher.attach(SOURCE) == position(3)
        _publish(publisher, batching, 4, 6)
        publisher.stop()
    assert [number for batch in _batches(any_broker.client) for number in batch] == [1, 2, 3, 4, 5, 6]


def test_what_a_route_deferred_goes_out_even_if_it_is_registered_no_more(
    broker: Broker, batching: BinlogRouter
) -> None:
    with redis_publisher(broker.url, options=_LONG) as publisher:
        _publish(publisher, batching, 1, 3)
        _crash(publisher)
    other: Any = router_to("tests.other")
    with redis_publisher(broker.url, options=_LONG) as publisher:
        publisher.publish(fire(other, [change(4)]), checkpoint=position(4))
    tasks = [message["headers"]["task"] for message in messages(broker.client, "celery")]
    assert sorted(tasks) == ["tests.other", "tests.task"]
