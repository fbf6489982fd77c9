"""A batch and its checkpoint are in Redis together, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from listener.core.publisher import BrokerError, CheckpointMovedError
from listener.core.source import Saved
from listener.publish.parked import parked_key, read_parked
from listener.router import BinlogRouter, EventType
from tests.support.publishing import (
    SOURCE,
    change,
    changes,
    fire,
    ids,
    messages,
    position,
    redis_publisher,
    router_to,
)

if TYPE_CHECKING:
    from tests.conftest import Broker


@pytest.fixture
def checkpoint_key() -> str:
    return "cdc:test:checkpoint"


def test_changes_are_in_the_queue_in_their_order(any_broker: Broker) -> None:
    router = router_to()
    with redis_publisher(any_broker.url) as publisher:
        for first in (1, 101, 201):
            publisher.publish(fire(router, changes(first, first + 99)), checkpoint=position(first + 99))
    assert ids(any_broker.client, "celery") == list(range(1, 301))


def test_the_checkpoint_is_what_was_published_last(any_broker: Broker) -> None:
    router = router_to()
    with redis_publisher(any_broker.url) as publisher:
        assert publisher.attach(SOURCE) is None
        publisher.publish(fire(router, [change(1)]), checkpoint=position(1))
        publisher.publish((), checkpoint="0/FF:0")
    with redis_publisher(any_broker.url) as publisher:
        assert publisher.attach(SOURCE) == "0/FF:0"


def test_what_the_source_notes_is_kept_with_the_checkpoint_until_it_notes_something_else(
    broker: Broker,
) -> None:
    with redis_publisher(broker.url) as publisher:
        assert publisher.read_checkpoint() is None
        publisher.publish((), checkpoint=position(1), notes="tables: tickets")
        publisher.publish((), checkpoint=position(1), notes="tables: tickets, users")
        publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
    with redis_publisher(broker.url) as publisher:
        assert publisher.read_checkpoint() == Saved(position(2), "tables: tickets, users")


def test_the_batch_and_its_checkpoint_are_one_step(broker: Broker) -> None:
    with redis_publisher(broker.url) as publisher, broker.client.monitor() as monitor:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
        broker.client.echo("end")
        seen = []
        for each in monitor.listen():
            if "end" in each["command"]:
                break
            seen.append(each["command"].split()[0])
    start = len(seen) - seen[::-1].index("MULTI") - 1
    assert seen[start : start + 6] == ["MULTI", "LPUSH", "HSET", "EXEC", "WATCH", "HMGET"]


def test_nothing_new_costs_no_word_to_the_broker(broker: Broker) -> None:
    with redis_publisher(broker.url) as publisher:
        publisher.publish((), checkpoint=position(1))
        before = broker.client.info("stats")["total_commands_processed"]
        for _ in range(100):
            publisher.publish((), checkpoint=position(1))
        assert broker.client.info("stats")["total_commands_processed"] == before + 1


def test_a_prefix_before_all_keys_holds_for_the_checkpoint_too(broker: Broker) -> None:
    options = {"global_keyprefix": "helpdesk:"}
    with redis_publisher(broker.url, broker_transport_options=options) as publisher:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    assert broker.client.exists("helpdesk:celery", "helpdesk:cdc:test:checkpoint") == 2
    assert all(key.startswith(b"helpdesk:") for key in broker.client.scan_iter())


def test_another_listener_with_our_name_moves_the_checkpoint_and_ours_stops_before_it_doubles_anything(
    any_broker: Broker,
) -> None:
    router = router_to()
    with redis_publisher(any_broker.url) as first, redis_publisher(any_broker.url) as second:
        first.publish(fire(router, [change(1)]), checkpoint=position(1))
        with pytest.raises(CheckpointMovedError):
            second.publish(fire(router, [change(1)]), checkpoint=position(1))
        assert second.attach(SOURCE) == position(1)
        second.publish(fire(router, [change(2)]), checkpoint=position(2))
        with pytest.raises(CheckpointMovedError):
            first.publish(fire(router, [change(2)]), checkpoint=position(2))
    assert ids(any_broker.client, "celery") == [1, 2]


def test_a_pipelined_batch_counts_as_confirmed_when_the_broker_has_answered(broker: Broker) -> None:
    router = router_to()
    with redis_publisher(broker.url) as publisher:
        assert publisher.publish(fire(router, [change(1)]), checkpoint=position(1), pipelined=True) is None
        confirmed = publisher.publish(fire(router, [change(2)]), checkpoint=position(2), pipelined=True)
        assert confirmed == position(1)
        assert publisher.flush() == position(2)
    assert ids(broker.client, "celery") == [1, 2]


def test_a_pipelining_listener_stops_before_it_doubles_what_another_one_published(broker: Broker) -> None:
    router = router_to()
    with redis_publisher(broker.url) as first, redis_publisher(broker.url) as second:
        second.publish(fire(router, [change(1)]), checkpoint=position(1))
        first.publish(fire(router, [change(1)]), checkpoint=position(1), pipelined=True)
        with pytest.raises(CheckpointMovedError):
            first.publish(fire(router, [change(2)]), checkpoint=position(2), pipelined=True)
        assert first.attach(SOURCE) == position(1)
        first.publish(fire(router, [change(2)]), checkpoint=position(2))
    assert ids(broker.client, "celery") == [1, 2]


def test_another_listener_that_only_moves_the_checkpoint_within_a_position_is_noticed(
    broker: Broker, checkpoint_key: str
) -> None:
    """The position alone would not show it."""
    with redis_publisher(broker.url) as publisher:
        publisher.publish((), checkpoint=position(1))
        broker.client.hset(checkpoint_key, mapping={"position": position(1), "mark": "somebody else's"})
        with pytest.raises(CheckpointMovedError):
            publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
    assert not broker.client.exists("celery")


def test_listeners_of_other_names_do_not_meet(broker: Broker) -> None:
    router = router_to()
    with redis_publisher(broker.url, name="one") as one, redis_publisher(broker.url, name="two") as two:
        one.publish(fire(router, [change(1)]), checkpoint=position(1))
        two.publish(fire(router, [change(2)]), checkpoint=position(2))
        one.publish(fire(router, [change(3)]), checkpoint=position(3))
    assert ids(broker.client, "celery") == [1, 2, 3]


def test_the_checkpoint_of_another_database_is_an_error_with_the_command_that_mends_it(
    broker: Broker, checkpoint_key: str
) -> None:
    with redis_publisher(broker.url) as publisher:
        publisher.publish((), checkpoint=position(1))
        with pytest.raises(BrokerError, match="another database") as raised:
            publisher.attach("beef")
    assert f"redis-cli DEL {checkpoint_key}" in (raised.value.hint or "")


def test_a_change_that_a_route_could_not_take_is_parked_in_the_same_step(broker: Broker) -> None:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.good")
    router.register(
        "public", "tickets", EventType.ALL, "tests.bad", args=lambda change: [change.row["missing"]]
    )
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, changes(1, 3)), checkpoint=position(3))
    assert ids(broker.client, "celery") == [1, 2, 3]
    parked = sorted(
        read_parked(broker.client, parked_key("cdc:test")), key=lambda each: each.change.row["id"]
    )
    assert [each.change for each in parked] == changes(1, 3)
    assert {each.task for each in parked} == {"tests.bad"}
    assert parked[0].error == "KeyError: 'missing'"
    assert parked[0].find_route(router) is router.routes[1]


def test_a_parked_change_is_told_once_it_is_kept(broker: Broker) -> None:
    router = BinlogRouter()
    router.register(
        "public", "tickets", EventType.ALL, "tests.bad", when=lambda change: change.row["missing"]
    )
    with redis_publisher(broker.url) as first, redis_publisher(broker.url) as second, capture_logs() as logs:
        second.publish((), checkpoint=position(1))
        first.publish(fire(router, [change(1)]), checkpoint=position(1), pipelined=True)
        with pytest.raises(CheckpointMovedError):
            first.flush()
        assert first.attach(SOURCE) == position(1)
        assert not logs
        first.publish(fire(router, [change(2)]), checkpoint=position(2), pipelined=True)
        assert not logs
        first.flush()
    assert [(each["event"], each["position"]) for each in logs] == [("parked", position(2))]


def test_a_queue_that_turns_into_something_else_stops_us_with_the_checkpoint_where_it_was(
    broker: Broker, checkpoint_key: str
) -> None:
    router = router_to()
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, [change(1)]), checkpoint=position(1))
        broker.client.delete("celery")
        broker.client.hset("celery", "not", "a queue")
        with pytest.raises(BrokerError, match=r"LPUSH.*celery.*WRONGTYPE") as raised:
            publisher.publish(fire(router, [change(2)]), checkpoint=position(2))
        assert "redis-cli TYPE 'celery'" in (raised.value.hint or "")
        assert broker.client.hget(checkpoint_key, "position") == position(1).encode()
        broker.client.delete("celery")
        assert publisher.attach(SOURCE) == position(1)
        publisher.publish(fire(router, [change(2)]), checkpoint=position(2))
    assert ids(broker.client, "celery") == [2]


def test_two_messages_with_one_task_id_can_be_unacknowledged_side_by_side(broker: Broker) -> None:
    """Kombu keys them by delivery tag: a task that is sent again has another one."""
    for _run in range(2):
        broker.client.delete("cdc:test:checkpoint")
        with redis_publisher(broker.url) as publisher:
            publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    first, second = messages(broker.client, "celery")
    assert first["headers"]["id"] == second["headers"]["id"]
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]
