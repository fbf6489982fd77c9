"""Order by key on Redis: which messages the transport hands out, and when."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import OperationalError

from cdc_tasks import key_headers
from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.broker.redis.sent_together import sent_together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu.message import Message

    from tests.conftest import Broker

_QUEUES = ("one", "two")
_PREFIX = "shop."
_EXCHANGE = Exchange("jobs", type="direct")


class Worker:
    """A worker's channel in this process: it takes what the transport hands out, and keeps it."""

    def __init__(self, url: str, *queues: str, most: int = 10) -> None:
        self.connection = Connection(
            url,
            transport="cdc_tasks.broker.redis.transport:Transport",
            transport_options={"global_keyprefix": _PREFIX},
        )
        self.channel = self.connection.channel()
        self.channel.basic_qos(0, most, False)
        self.taken: dict[Any, Message] = {}
        self.begun: list[Any] = []
        bound = [Queue(name, _EXCHANGE, routing_key=name) for name in queues or _QUEUES]
        self._consumer = Consumer(self.channel, bound, callbacks=[self._take])
        self._consumer.consume()

    def _take(self, body: Any, message: Message) -> None:
        self.begun.append(body)
        self.taken[body] = message

    def look(self) -> list[Any]:
        """Return what it holds once nothing more is handed out."""
        try:
            while True:
                self.connection.drain_events(timeout=0.3)
        except TimeoutError:
            return list(self.taken)

    def stop_looking(self) -> None:
        self.channel.wake_ups.close()

    def ack(self, number: Any) -> list[Any]:
        self.taken.pop(number).ack()
        return self.look()

    def drain(self) -> list[Any]:
        """Acknowledge all there is, and return in which order it came."""
        try:
            while True:
                while self.taken:
                    self.taken.pop(next(iter(self.taken))).ack()
                self.connection.drain_events(timeout=0.3)
        except TimeoutError:
            return self.begun

    def send(self, number: Any, key: Any = None, queue: str = "one", **more: Any) -> None:
        headers = {"id": str(number), "task": "task"}
        if key is not None:
            headers |= key_headers("group", key, **more.pop("of_key", {}))
        Producer(self.channel, _EXCHANGE).publish(
            number, routing_key=queue, headers=headers | more.pop("headers", {}), serializer="json", **more
        )


@pytest.fixture
def worker(any_broker: Broker) -> Iterator[Worker]:
    worker = Worker(any_broker.url)
    yield worker
    worker.connection.close()


@pytest.fixture
def groups(any_broker: Broker) -> MessageGroups:
    return MessageGroups(any_broker.client, _PREFIX)


def left(broker: Broker) -> list[str]:
    """Return the keys in Redis that belong to message groups; the last number of all stays."""
    found = [key.decode() for key in broker.client.scan_iter(f"{_PREFIX}cdc:keys*")]
    return [key for key in found if not key.endswith(":number")]


def test_of_each_key_one_message_is_handed_out_in_the_order_of_sending_over_all_queues(
    any_broker: Broker, worker: Worker
) -> None:
    worker.send(1, "a")
    worker.send(2, "a", "two")
    worker.send(3, "b", "two")
    worker.send(4, "a")
    worker.send(5)
    assert sorted(worker.look()) == [1, 3, 5]
    assert sorted(worker.ack(1)) == [2, 3, 5]
    assert sorted(worker.ack(3)) == [2, 5]
    assert sorted(worker.ack(2)) == [4, 5]
    assert worker.ack(4) == [5]
    assert worker.ack(5) == []
    assert left(any_broker) == []


def _scripts_that_ran(broker: Broker) -> int:
    found = broker.client.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


def test_messages_that_are_sent_together_are_one_step_or_none(any_broker: Broker, worker: Worker) -> None:
    worker.send(0, "a")  # from now on Redis knows the script
    before = _scripts_that_ran(any_broker)
    with sent_together():
        for number, key, queue in ((1, "a", "one"), (2, "b", "two"), (3, "a", "two")):
            worker.send(number, key, queue)
    assert _scripts_that_ran(any_broker) == before + 1
    with suppress(KeyError), sent_together():
        worker.send(4, "a")
        raise KeyError
    any_broker.client.set(f"{_PREFIX}two", "no list")
    with pytest.raises(OperationalError, match="WRONGTYPE"), sent_together():
        worker.send(5, "free", "two")
    any_broker.client.delete(f"{_PREFIX}two")
    assert worker.drain() == [0, 1, 3]


def test_a_body_of_any_kind_does_not_hide_the_key(any_broker: Broker, worker: Worker) -> None:
    bodies = ['"', "\\", '", "headers": {"cdc_key": "other"}, "x": "', "plain"]
    for body in bodies:  # as a sender with kombu's own transport does it
        message = {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "text/plain",
            "headers": {"id": body, "task": "task"} | key_headers("group", "a"),
            "properties": {
                "delivery_info": {"exchange": "jobs", "routing_key": "one"},
                "delivery_tag": f"tag of {body}",
                "delivery_mode": 2,
                "priority": 0,
            },
        }
        any_broker.client.lpush(f"{_PREFIX}one", json.dumps(message))
    assert worker.drain() == bodies
    assert left(any_broker) == []


def test_a_key_goes_on_after_a_message_that_was_dropped_and_not_after_one_that_was_given_back(
    any_broker: Broker, worker: Worker
) -> None:
    for number in (1, 2, 3):
        worker.send(number, "a")
    assert worker.look() == [1]
    worker.taken.pop(1).requeue()
    assert worker.look() == [1]
    worker.taken.pop(1).reject()
    assert worker.look() == [2]
    assert worker.ack(2) == [3]
    assert worker.ack(3) == []
    assert left(any_broker) == []


def test_a_retry_keeps_the_key_of_the_message_that_it_replaces(any_broker: Broker, worker: Worker) -> None:
    worker.send(1, "a")
    worker.send(2, "a")
    assert worker.look() == [1]
    worker.send("retry of 1", "a", headers={"id": "1"})  # as Celery does: first the retry, then the end
    assert worker.ack(1) == ["retry of 1"]
    assert worker.ack("retry of 1") == [2]
    worker.ack(2)
    assert left(any_broker) == []


def test_the_message_of_a_dead_worker_comes_back_to_its_key_unless_a_retry_has_replaced_it(
    any_broker: Broker, worker: Worker
) -> None:
    dead = Worker(any_broker.url)
    for number, key in ((1, "a"), (2, "a"), (3, "b"), (4, "b")):
        worker.send(number, key)
    assert sorted(dead.look()) == [1, 3]
    dead.stop_looking()
    dead.send("retry of 3", "b", headers={"id": "3"})  # and dies before it ends the first try
    dead.channel.qos.restore_unacked()  # what another worker does when the lease has expired
    assert sorted(map(str, worker.look())) == ["1", "retry of 3"]
    assert sorted(map(str, worker.ack("retry of 3"))) == ["1", "4"]
    worker.drain()
    assert worker.begun.count(3) == 0
    assert left(any_broker) == []
    dead.connection.close()


def test_what_a_stopped_worker_acknowledges_too_late_does_not_let_its_key_go(
    any_broker: Broker, worker: Worker
) -> None:
    stopped = Worker(any_broker.url)
    worker.send(1, "a")
    worker.send(2, "a")
    assert stopped.look() == [1]
    stopped.stop_looking()
    late = stopped.taken[1]
    delivered = dict(stopped.channel.qos._delivered)
    stopped.channel.qos.restore_unacked()
    assert worker.look() == [1]
    stopped.channel.qos._delivered.update(delivered)
    late.ack()
    assert worker.look() == [1]
    assert worker.ack(1) == [2]
    stopped.connection.close()


def test_a_message_of_an_earlier_rank_goes_first_although_it_was_sent_later(worker: Worker) -> None:
    worker.send(1, "a")
    for number in (30, 10, 20):
        worker.send(number, "a", of_key={"position": f"0/{number}:0"})
    assert worker.look() == [1]
    worker.send(5, "a", of_key={"position": "0/5:0"})
    worker.send("other 10", "a", of_key={"position": "0/10:0"})
    assert worker.drain() == [1, 5, 10, "other 10", 20, 30]


def test_a_message_of_an_earlier_rank_replaces_one_that_nobody_has_taken_yet(worker: Worker) -> None:
    for number in (30, 10, 20):
        worker.send(number, "a", of_key={"position": f"0/{number}:0"})
    assert worker.drain() == [10, 20, 30]


def test_a_message_with_a_key_from_a_sender_with_kombus_own_transport_waits_too(
    any_broker: Broker, worker: Worker
) -> None:
    with Connection(any_broker.url, transport_options={"global_keyprefix": _PREFIX}) as stock:
        stock_producer = Producer(stock.channel(), _EXCHANGE)
        for number in range(1, 300):
            stock_producer.publish(
                number,
                routing_key="one",
                headers={"id": str(number), "task": "task", **key_headers("group", "a")},
                serializer="json",
            )
    worker.send(1000, "b")
    assert sorted(worker.look()) == [1, 1000]
    assert worker.drain()[2:] == list(range(2, 300))
    assert left(any_broker) == []


def test_priorities_do_not_change_the_order_of_a_key(worker: Worker) -> None:
    for number, priority in ((1, 0), (2, 9), (3, 3), (4, 0)):
        worker.send(number, "a", priority=priority)
    assert worker.drain() == [1, 2, 3, 4]


def test_the_turns_of_a_key_come_among_the_other_messages_of_its_queue(any_broker: Broker) -> None:
    worker = Worker(any_broker.url, most=1)
    for number in (1, 2, 3):
        worker.send(number, "a")
    for number in range(100, 120):
        worker.send(number, f"other {number}")
    begun = worker.drain()
    assert [number for number in begun if number < 100] == [1, 2, 3]
    assert 1 < begun.index(3) < 15
    worker.connection.close()


def test_purge_deletes_what_waits_for_the_queue_and_frees_the_keys(
    any_broker: Broker, worker: Worker, groups: MessageGroups
) -> None:
    taker = Worker(any_broker.url, "two")
    for number, queue in ((1, "one"), (2, "two"), (3, "one"), (4, "two")):
        worker.send(number, "a", queue)
    worker.stop_looking()
    assert worker.channel.queue_purge("one") == 2
    assert taker.look() == [2]
    assert worker.channel.queue_purge("two") == 1
    assert [each.state for each in groups.held_up()] == []
    taker.ack(2)
    assert left(any_broker) == []
    worker.send(5, "b")
    worker.send(6, "b")
    worker.channel.queue_delete("one")
    assert left(any_broker) == []
    taker.connection.close()


def test_a_failed_task_holds_its_key_until_it_is_let_go_or_comes_again(
    any_broker: Broker, worker: Worker, groups: MessageGroups
) -> None:
    for number in (1, 2, 3):
        worker.send(number, "a", of_key={"on_failure": "hold"})
    assert worker.look() == [1]
    worker.channel.qos.hold_key(worker.taken[1].delivery_tag)
    assert worker.ack(1) == []
    (held,) = groups.held_up()
    assert (held.key, held.task, held.task_id, held.state, held.waiting) == (
        "group:a",
        "task",
        "1",
        "failed",
        2,
    )
    assert [each.task_id for each in groups.waiting("group:a", most=1)] == ["2"]

    worker.send("replay of 1", "a", headers={"id": "1"})
    assert worker.look() == ["replay of 1"]
    assert [each.state for each in groups.held_up()] == ["taken"]
    assert not groups.let_go("group:a", "1")  # it does not hold the key any more: it runs
    assert worker.ack("replay of 1") == [2]

    worker.channel.qos.hold_key(worker.taken[2].delivery_tag)
    assert worker.ack(2) == []
    assert groups.let_go("group:a", "2")
    assert worker.look() == [3]
    worker.channel.qos.hold_key(worker.taken[3].delivery_tag)
    worker.ack(3)
    assert [(each.state, each.waiting) for each in groups.held_up()] == [("failed", 0)]
    assert groups.skip("group:a", "3")
    assert left(any_broker) == []


def test_a_key_goes_on_without_a_message_that_a_person_skips(
    any_broker: Broker, worker: Worker, groups: MessageGroups
) -> None:
    for number in (1, 2, 3):
        worker.send(number, "a")
    any_broker.client.delete(f"{_PREFIX}one")  # by hand: the key still has an owner
    (held,) = groups.held_up()
    assert (held.task_id, held.state, held.waiting) == ("1", "queued", 2)
    assert not groups.skip("group:a", "2")  # it is not the owner
    assert groups.skip("group:a", "1")
    assert worker.drain() == [2, 3]


def test_content_that_is_no_message_leaves_no_key_behind(
    any_broker: Broker, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_tasks.broker.redis.transport.keep_malformed", lambda *_, **__: None)
    raw = {
        "headers": {"cdc_key": "group:a", "id": 1},
        "properties": {"delivery_tag": "x", "delivery_info": {}},
    }
    any_broker.client.lpush(f"{_PREFIX}one", json.dumps(raw))
    assert worker.look() == []
    worker.send(2, "a")
    assert worker.drain() == [2]
    assert left(any_broker) == []
