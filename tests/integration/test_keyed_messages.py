"""Messages with a key, as the listener writes them: of each key one in its queue, the others behind it, in order."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.routing.router import BinlogRouter
from listener.core.publisher import StoppedError
from tests.support.publishing import change, fire, messages, position, redis_publisher, router_to

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.conftest import Broker


def _in_queue(broker: Broker, queue: str = "cdc_bulk") -> list[tuple[int, str | None]]:
    """Return number and key of each message, next one first."""
    found = messages(broker.client, queue)
    return [(each["body"][0][0]["after"]["id"], each["headers"].get("cdc_key")) for each in found]


def _changes(*numbers: int) -> list[Any]:
    return [change(number, id=number, account=f"a{number % 2}") for number in numbers]


@pytest.mark.versions
def test_of_each_key_one_message_is_in_its_queue_and_the_others_wait_in_the_order_of_commits(
    any_broker: Broker,
) -> None:
    router = router_to("task", events=["insert"], queue="cdc_bulk", key="account", group="accounts")
    with redis_publisher(any_broker.url) as publisher:
        publisher.publish(fire(router, _changes(*range(1, 101))), checkpoint=position(100))
        publisher.publish(fire(router, _changes(101)), checkpoint=position(101))
    groups = MessageGroups(any_broker.client)
    assert _in_queue(any_broker) == [(1, "accounts:a1"), (2, "accounts:a0")]
    waiting = groups.waiting("accounts:a1", most=1000)
    assert [each.queue for each in waiting] == ["cdc_bulk"] * 50
    numbers = [int(each.task_id.split("-")[0].rpartition("/")[2] or 0, 16) for each in waiting]
    assert numbers == sorted(numbers)
    (one, two) = sorted(groups.held_up())
    assert (one.key, one.waiting, two.key, two.waiting) == ("accounts:a0", 49, "accounts:a1", 50)
    assert any_broker.client.hgetall("cdc:keys:lengths") == {b"cdc_bulk": b"99"}


def test_routes_of_one_group_share_their_keys_over_all_queues(broker: Broker) -> None:
    router = BinlogRouter()
    for task, queue in (("first", "cdc_bulk"), ("second", "cdc_cache"), ("free", "cdc_cache")):
        keyed = {} if task == "free" else {"key": "id", "group": "orders"}
        router.register("public", "*", "insert", task, queue=queue, **keyed)  # type: ignore[arg-type]
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, _changes(1, 2)), checkpoint=position(2))
    assert _in_queue(broker) == [(1, "orders:1"), (2, "orders:2")]
    assert _in_queue(broker, "cdc_cache") == [(1, None), (2, None)]
    assert [each.task for each in MessageGroups(broker.client).waiting("orders:1", most=9)] == ["second"]


def _orders(*, to_two_queues: bool = False) -> BinlogRouter:
    router = BinlogRouter()
    for task, queue in [("first", "cdc_bulk"), ("second", "cdc_cache")][: 1 + to_two_queues]:
        router.register("public", "*", "insert", task, queue=queue, key="account", group="orders")
    return router


def _task_ids(fired: Iterable[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for each in fired:
        found[each.key].append(each.id)
    return found


@pytest.mark.parametrize("to_two_queues", [False, True])
def test_each_key_keeps_its_order_whether_it_is_busy_or_free_when_more_comes(
    broker: Broker, to_two_queues: bool
) -> None:
    groups, router, random = MessageGroups(broker.client), _orders(to_two_queues=to_two_queues), Random(7)
    sent: dict[str, list[str]] = defaultdict(list)
    owned: dict[str, list[str]] = defaultdict(list)
    number = 0
    for _ in range(7):  # publishers that do not know yet which keys are busy
        with redis_publisher(broker.url) as publisher:
            for _ in range(3):
                rows = _rows_of_accounts(random, number)
                number += len(rows)
                fired = list(fire(router, rows))
                for key, ids in _task_ids(fired).items():
                    sent[key] += ids
                publisher.publish(fired, checkpoint=position(number))
                for key in random.sample(sorted(sent), k=len(sent) // 2):
                    owned[key] += _go_on(groups, key, most=random.randint(1, 25))
    lengths = broker.client.hgetall("cdc:keys:lengths")
    waiting = sum(each.waiting for each in groups.held_up())
    assert sum(map(int, lengths.values())) == waiting == _number(sent) - _number(owned) - _busy(groups, sent)
    for key in sent:
        owned[key] += _go_on(groups, key, most=10_000)
    assert owned == sent
    assert sorted(_handed_out(broker)) == sorted(each for ids in sent.values() for each in ids)
    assert [key for key in broker.client.scan_iter("cdc:keys*") if b":next:" not in key] == []


def _rows_of_accounts(random: Random, after: int) -> list[Any]:
    """Return new rows of some accounts: two have many, and the others few."""
    names = random.choices(["a", "b", *map(str, range(40))], weights=[20, 10, *[1] * 40], k=90)
    numbers = range(after + 1, after + 1 + random.randint(1, 90))
    return [change(each, id=each, account=name) for each, name in zip(numbers, names, strict=False)]


def _go_on(groups: MessageGroups, key: str, *, most: int) -> list[str]:
    """Let up to `most` messages of a key end, and return their task ids."""
    ended: list[str] = []
    while len(ended) < most and (found := groups.of_key(key)):
        assert groups.skip(key, found.task_id)
        ended.append(found.task_id)
    return ended


def _handed_out(broker: Broker) -> list[str]:
    """Return the ids of the tasks whose turn has come."""
    queues = ("cdc_bulk", "cdc_cache")
    lists = [name for queue in queues for name in (queue, f"cdc:keys:next:{queue}")]
    return [each["headers"]["id"] for name in lists for each in messages(broker.client, name)]


def _number(of_keys: dict[str, list[str]]) -> int:
    return sum(map(len, of_keys.values()))


def _busy(groups: MessageGroups, keys: Iterable[str]) -> int:
    return sum(groups.of_key(key) is not None for key in keys)


def test_a_message_that_is_sent_again_takes_the_place_of_the_owner_with_its_id(broker: Broker) -> None:
    groups, router = MessageGroups(broker.client), _orders()
    rows = [change(number, id=number, account="a") for number in (1, 2, 3)]
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, rows[:2]), checkpoint=position(2))
        # The publisher knows that the key is busy.
        publisher.publish(fire(router, [rows[2], rows[0]]), checkpoint=position(3))
    with redis_publisher(broker.url, name="other") as publisher:
        publisher.publish(fire(router, [rows[0]]), checkpoint=position(4))
    (held,) = groups.held_up()
    assert held.task_id == "7f00-1-0-" + router.routes[0].id
    assert held.waiting == 2
    assert [number for number, _ in _in_queue(broker)] == [1, 1, 1]  # of which workers get the last one


def test_a_key_without_an_owners_record_goes_on(broker: Broker) -> None:
    groups, router = MessageGroups(broker.client), _orders()
    rows = [change(number, id=number, account="a") for number in range(1, 6)]
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, rows[:3]), checkpoint=position(3))
        broker.client.delete("cdc:keys")  # by hand
        publisher.publish(fire(router, rows[3:]), checkpoint=position(5))
    (held,) = groups.held_up()
    assert held.task_id.startswith("7f00-4-0-")
    assert [int(each.task_id.split("-")[1]) for each in groups.waiting("orders:a", most=9)] == [2, 3, 5]


def test_a_batch_has_changes_of_one_key(broker: Broker) -> None:
    router = router_to("task", events=["insert"], queue="cdc_bulk", key="account", group=None, batch=3)
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, _changes(*range(1, 8))), checkpoint=position(7))
    with redis_publisher(broker.url) as publisher:  # what was open is saved, and goes out at the next start
        publisher.publish([], checkpoint=position(8))
    found = messages(broker.client, "cdc_bulk")
    ids = [[each["after"]["id"] for each in message["body"][0][0]] for message in found]
    assert ids == [[1, 3, 5], [2, 4, 6]]
    (held,) = MessageGroups(broker.client).held_up()
    assert (held.waiting, held.key.endswith(":a1")) == (1, True)


def test_a_queue_is_full_if_too_many_messages_wait_for_its_keys(broker: Broker) -> None:
    router = router_to("task", events=["insert"], queue="cdc_bulk", key="account", group="accounts")
    with redis_publisher(broker.url, options={"max_queue": 50}) as publisher:
        publisher.stop()
        with pytest.raises(StoppedError):  # it would wait
            publisher.publish(fire(router, _changes(*range(1, 101))), checkpoint=position(100))
    assert len(_in_queue(broker)) == 2


def test_what_was_set_aside_takes_its_place_when_it_moves_to_the_queue(broker: Broker) -> None:
    options = {"key": "account", "group": "accounts", "on_full": "set_aside"}
    router = router_to("task", events=["insert"], queue="cdc_bulk", **options)
    groups = MessageGroups(broker.client)
    with redis_publisher(broker.url, options={"max_queue": 3, "max_set_aside": 1000}) as publisher:
        publisher.publish(fire(router, _changes(*range(1, 11))), checkpoint=position(10))
        publisher.publish(fire(router, _changes(*range(11, 21))), checkpoint=position(20))
        assert [number for number, _ in _in_queue(broker)] == [1, 2]
        assert sum(broker.client.llen(key) for key in broker.client.scan_iter("*set-aside:*")) == 10
        groups.purge(["cdc_bulk"])  # as if workers had done all of it
        for number in range(21, 25):
            publisher.publish([], checkpoint=position(number))
        publisher.publish(fire(router, _changes(25)), checkpoint=position(25))
    assert [number for number, _ in _in_queue(broker)] == [11, 12]
    (held,) = groups.held_up()
    assert (held.key, held.waiting) == ("accounts:a1", 1)  # 13: with it the queue is full again
    assert sum(broker.client.llen(key) for key in broker.client.scan_iter("*set-aside:*")) == 8
