"""Tasks with a key on RabbitMQ run one at a time and in order, whatever becomes of their workers."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Connection

from cdc_tasks import cache, install
from cdc_tasks.broker.rabbitmq import held_keys
from cdc_tasks.routing.message_groups import key_headers
from harness.waiting import at_most, wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.proxy import Fault, Proxy
from tests.support.tasks.in_order import LOG
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk


@pytest.fixture
def environment(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    monkeypatch.setenv("CDC_KEY_PARTITIONS", "4")
    return {
        **helpdesk.environment,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.in_order",
        "CDC_KEY_PARTITIONS": "4",
    }


def _send(sender: Celery, key: str, number: int, *, task: str = "notes", **options: Any) -> str:
    """Send a task, and return its id."""
    hold = options.pop("hold", False)
    headers = key_headers("test", key, on_failure="hold" if hold else "continue")
    return str(sender.send_task(f"in_order.{task}", [key, number], options, headers=headers).id)


def _log(desk: HelpDesk) -> list[tuple[str, str, int]]:
    lines = [line.decode().split() for line in desk.broker.cache.lrange(LOG, 0, -1)]
    return [(what, key, int(number)) for what, key, number in lines]


def _ended(desk: HelpDesk, key: str | None = None) -> set[tuple[str, int]]:
    return {(name, number) for what, name, number in _log(desk) if what == "ends" and key in {None, name}}


def _check_order(log: list[tuple[str, str, int]]) -> None:
    """Fail if a task began before one of its key that came earlier had ended, or while another one ran."""
    last: dict[str, int] = defaultdict(int)
    running: dict[str, int | None] = defaultdict(lambda: None)
    for what, key, number in log:
        if what == "begins":
            assert running[key] in {None, number}, f"{key}: {number} began while {running[key]} ran"
            assert number in {last[key], last[key] + 1}, f"{key}: {number} began after {last[key]}"
            last[key] = number
            running[key] = number
        elif what in {"ends", "fails"}:
            running[key] = None


@pytest.mark.versions
def test_each_key_keeps_its_order_while_tasks_are_retried_and_workers_come_and_go(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    keys, each = 12, 12
    everything = {(f"key-{key}", number) for key in range(keys) for number in range(1, each + 1)}
    with Worker(environment, "-n", "first@%h") as first, install(sender_of(environment)) as sender:
        with Worker(environment, "-n", "second@%h"):
            for number in range(1, each + 1):
                for key in range(keys):
                    _send(sender, f"key-{key}", number, fails=int((key + number) % 9 == 0), takes=0.02)
            wait_until(lambda: len(_ended(helpdesk)) > 30, timeout=60, what="some tasks")
            first.kill()
            wait_until(lambda: len(_ended(helpdesk)) > 60, timeout=60, what="more tasks")
        with Worker(environment, "-n", "third@%h"):
            wait_until(lambda: _ended(helpdesk) == everything, timeout=90, what="all tasks")
            # While there is a worker: one that is killed frees no key.
            wait_until(lambda: not helpdesk.broker.cache.exists("cdc:held-keys"), what="all keys to be free")
    _check_order(_log(helpdesk))
    assert not helpdesk.broker.cache.keys("cdc:held-keys:waiting:*")


def test_a_worker_that_lost_its_task_and_began_a_retry_leaves_no_key_held_up(
    environment: dict[str, str], helpdesk: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection broke, and it is ended after it has noted the retry, and before it has sent it."""
    monkeypatch.setenv("CACHE_URL", environment["CACHE_URL"])
    cache.client.cache_clear()
    with Worker(environment) as first, install(sender_of(environment)) as sender:
        task = _send(sender, "key", 1, takes=4)
        _send(sender, "key", 2)
        wait_until(lambda: ("begins", "key", 1) in _log(helpdesk), timeout=60, what="the task")
        first.kill()
        with Worker(environment):
            wait_until(lambda: len(_log(helpdesk)) > 1, timeout=60, what="the task to begin again")
            held_keys.hold("test:key", task, "in_order.notes", "retry")  # what the first worker does
            wait_until(lambda: ("key", 2) in _ended(helpdesk), timeout=60, what="the next task")
            wait_until(lambda: not helpdesk.broker.cache.exists("cdc:held-keys"), what="the key to be free")
    cache.client.cache_clear()


def test_a_task_that_waits_for_its_retry_holds_up_its_own_key_and_nobody_else(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    others = {(key, number) for key in "abcdefgh" for number in range(1, 6)}
    with Worker(environment), install(sender_of(environment)) as sender:
        _send(sender, "slow", 1, until="cured")
        for number in range(2, 150):  # more than a worker looks ahead
            _send(sender, "slow", number, takes=0)
        for key, number in sorted(others):
            _send(sender, key, number)
        wait_until(lambda: _ended(helpdesk) == others, timeout=60, what="the other keys")
        helpdesk.broker.cache.set("cured", 1)
        wait_until(lambda: len(_ended(helpdesk, "slow")) == 149, timeout=90, what="the key that was held up")
    _check_order(_log(helpdesk))


@pytest.mark.versions
def test_an_app_of_somebody_elses_keeps_the_order_in_queues_of_its_own(
    environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    """Its own queue and its `-Q` stay as they are, and its workers may come and go."""
    broker, app = helpdesk.broker, "tests.support.tasks.shop"
    url = environment["CELERY_BROKER_URL"]
    shop = {
        "SHOP_BROKER": url,
        "SHOP_NOTES": broker.cache_url,
        "CDC_CACHE_URL": broker.cache_url,
        "CDC_KEY_PARTITIONS": "4",
    }
    everything = {(f"key-{key}", number) for key in range(8) for number in range(1, 9)}

    def worker(name: str, *arguments: str) -> Worker:
        more = ("-n", f"{name}@%h", "-I", "tests.support.tasks.in_order", *arguments)
        return Worker(shop, *more, application=app)

    with (
        worker("plain", "-Q", "shop") as plain,
        worker("first") as first,
        Celery("shop", broker=url, set_as_current=False) as sender,
    ):
        install(sender)
        for key, number in sorted(everything, key=itemgetter(1)):
            _send(sender, key, number, fails=int(key == "key-3" and number == 2), takes=0.02)
        sender.send_task("shop.notes", ["plain"], queue="shop")
        wait_until(lambda: len(_ended(helpdesk)) > 10, timeout=60, what="some tasks")
        with worker("second", "-Q", "cdc_shop_keyed"):
            first.kill()
            wait_until(lambda: _ended(helpdesk) == everything, timeout=90, what="all tasks")
            # While there is a worker: one that is killed frees no key.
            wait_until(lambda: not broker.cache.exists("cdc:held-keys"), what="all keys to be free")
        wait_until(lambda: broker.cache.hget("shop notes", "plain"), timeout=60, what="its own queue's task")
        assert "in_order.notes[" not in plain.log
    _check_order(_log(helpdesk))
    types = dict(
        line.split("\t") for line in rabbitmq_server.control("list_queues", "name", "type").splitlines()
    )
    assert types["shop"].endswith("classic_queue") or types["shop"] == "classic"
    assert {name for name in types if name.startswith("cdc_shop_")} == {
        "cdc_shop_keyed",
        *(f"cdc_shop_keyed_{number}" for number in range(4)),
    }


def test_a_retry_is_dropped_whose_try_has_run_again_because_its_worker_died(
    environment: dict[str, str], helpdesk: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_tasks.cache.client", lambda: helpdesk.broker.cache)
    with install(sender_of(environment)) as sender:
        # As if the first try had sent its retry, and its worker had died before it acknowledged the try.
        for number, options in ((1, {}), (2, {}), (1, {"retries": 1}), (1, {"retries": 1})):
            headers = key_headers("test", "key")
            sender.send_task(
                "in_order.notes", ["key", number], headers=headers, task_id=f"id-{number}", **options
            )
        _send(sender, "key", 3)
        _send(sender, "another", 1)
        with Worker(environment) as worker:
            wait_until(lambda: ("key", 3) in _ended(helpdesk), timeout=60, what="the last task")
            wait_until(lambda: worker.events("keyed_message_dropped"), what="the retry to be dropped")
    began = [number for what, key, number in _log(helpdesk) if (what, key) == ("begins", "key")]
    assert began == [1, 2, 3]


def test_a_task_that_has_ended_runs_again_only_for_a_person_if_its_acknowledgement_was_lost(
    environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with Proxy(rabbitmq_server.port) as proxy, install(sender_of(environment)) as sender:
        proxied = {
            **environment,
            "CELERY_BROKER_URL": environment["CELERY_BROKER_URL"].replace(
                f":{rabbitmq_server.port}/", f":{proxy.port}/"
            ),
        }
        with Worker(proxied, "-Q", "cdc_keyed") as worker:  # which acknowledges nothing else
            proxy.fail(Fault.LOSE_REQUEST, at=_ACKNOWLEDGEMENT)
            failed = _send(sender, "key", 1, task="breaks")
            for number in (2, 3):
                _send(sender, "key", number)
            wait_until(lambda: ("key", 3) in _ended(helpdesk), timeout=60, what="the last task")
            dropped = [each["of_task_id"] for each in worker.events("keyed_message_dropped")]
            assert (proxy.faults, dropped) == (1, [failed])
            assert len(worker.events("task_gave_up")) == 1
        assert [number for what, _, number in _log(helpdesk) if what == "begins"].count(1) == 1
        _check_order(_log(helpdesk))
        helpdesk.broker.cache.set("cured", 1)
        _cdc(environment, "dead-letters", "replay", failed)
        _take_and_give_back(environment["CELERY_BROKER_URL"])
        with Worker(environment, "-Q", "cdc_keyed"):
            wait_until(lambda: ("key", 1) in _ended(helpdesk), timeout=60, what="the replayed task")


_ACKNOWLEDGEMENT = bytes(
    [0, 0, 0, 13, 0, 60, 0, 80]
)  # the size of a frame, and its class and method: basic.ack


def _take_and_give_back(url: str) -> None:
    """Be a worker that gets the only message of the partitions, and dies."""
    with Connection(url) as connection:
        taken: list[Any] = []
        channel: Any = connection.channel()
        for number in range(4):
            channel.basic_consume(f"cdc_keyed_{number}", callback=taken.append)
        while not taken:
            connection.drain_events(timeout=at_most(10))


def test_what_has_ended_is_known_by_its_task_its_try_and_its_replay(
    helpdesk: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_tasks.cache.client", lambda: helpdesk.broker.cache)

    def has_ended(headers: dict[str, Any], queue: str = "queue") -> bool:
        redelivered = held_keys.delivery_of(headers)
        return held_keys.look_up("key", queue, [], redelivered=redelivered)[1]

    first = {"id": "one", "retries": 0}
    retry, replay = {**first, "retries": 1}, {**first, "cdc_replayed_at": "now"}
    others = [retry, replay, {**first, "cdc_replay": "of the listener"}, {"id": "two"}]
    held_keys.hold("key", "two", "task", "retry")
    record, _ = held_keys.look_up("key", "queue", [str(held_keys.delivery_of(first))])
    assert record is not None
    assert record.id == "two"
    assert has_ended(first)
    assert not has_ended(first, "another")
    assert not any(map(has_ended, others))
    held_keys.note_ended("queue", [f"{number}:0:" for number in range(199)])
    assert has_ended(first)
    held_keys.note_ended("queue", [str(held_keys.delivery_of(retry))])
    assert has_ended(retry)
    assert not has_ended(first)
    assert held_keys.delivery_of({"retries": 0}) is None


def test_a_key_waits_for_a_task_whose_worker_died_and_then_its_process(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    with install(sender_of(environment)) as sender:
        _send(sender, "key", 1, task="dies_twice")
        for number in (2, 3, 4):
            _send(sender, "key", number)
        with Worker(environment) as first:
            wait_until(lambda: _log(helpdesk), timeout=60, what="the task to begin")
            first.kill()
        with Worker(environment):
            wait_until(lambda: len(_ended(helpdesk)) == 4, timeout=60, what="all tasks")
    begun = [number for what, _, number in _log(helpdesk) if what == "begins"]
    assert begun == [1, 1, 1, 2, 3, 4]


def test_messages_that_wait_are_sorted_by_their_positions(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    with install(sender_of(environment)) as sender:
        for number in (3, 1, 4, 2):
            headers = key_headers("test", "key", position=f"0/{number}:0")
            sender.send_task("in_order.notes", ["key", number], headers=headers)
        with Worker(environment):
            wait_until(lambda: len(_ended(helpdesk)) == 4, timeout=60, what="all tasks")
    numbers = [number for what, _, number in _log(helpdesk) if what == "begins"]
    assert numbers[1:] == sorted(numbers[1:])  # the first one may begin before the others have come


def test_a_second_worker_gets_its_share_of_the_partitions(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    """RabbitMQ itself leaves them all to the first one."""
    sent = 0
    with (
        Worker(environment, "-n", "first@%h"),
        Worker(environment, "-n", "second@%h", "-Q", "cdc_keyed") as second,
        install(sender_of(environment)) as sender,
    ):

        def is_shared() -> bool:
            nonlocal sent
            sent += 1
            for key in range(12):
                _send(sender, f"key-{key}", sent)
            return " succeeded in " in second.log

        wait_until(is_shared, timeout=60, what="the second worker to run a task", every=0.3)
        wait_until(lambda: len(_ended(helpdesk)) == 12 * sent, timeout=60, what="all tasks")
    _check_order(_log(helpdesk))


def test_a_failed_task_may_hold_its_key_until_a_person_has_decided(
    environment: dict[str, str], helpdesk: HelpDesk
) -> None:
    with Worker(environment) as worker, install(sender_of(environment)) as sender:
        for key in ("replayed", "dropped", "skipped"):
            _send(sender, key, 1, task="breaks", hold=True)
            for number in (2, 3):
                _send(sender, key, number, hold=True)
        _send(sender, "goes-on", 1, task="breaks")
        _send(sender, "goes-on", 2)
        wait_until(lambda: ("goes-on", 2) in _ended(helpdesk), timeout=60, what="the key that goes on")
        wait_until(lambda: _waiting(environment) == [2, 2, 2], timeout=60, what="the others to be held up")
        assert _ended(helpdesk) == {("goes-on", 2)}
        failed = {each["dead_letter"] for each in worker.events("task_gave_up")}
        of_key = {each["key"]: each["task_id"] for each in _held_up(environment)}
        assert set(of_key.values()) < failed
        helpdesk.broker.cache.set("cured", 1)
        _cdc(environment, "dead-letters", "replay", of_key["test:replayed"])
        _cdc(environment, "dead-letters", "drop", of_key["test:dropped"])
        _cdc(environment, "keys", "skip", "test:skipped")
        done = {(key, number) for key in ("replayed", "dropped", "skipped") for number in (2, 3)}
        done |= {("goes-on", 2), ("replayed", 1)}
        wait_until(lambda: _ended(helpdesk) == done, timeout=60, what="all keys to go on")
    _check_order(_log(helpdesk))
    assert _held_up(environment) == []


def _held_up(environment: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_cdc(environment, "keys", "list", "--json"))
    return found


def _waiting(environment: dict[str, str]) -> list[int]:
    return [each["waiting"] for each in _held_up(environment)]


def _cdc(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "cdc_tasks", *arguments]
    done = WARM.run(command, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout
