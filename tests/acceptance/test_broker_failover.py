"""The listener, as a process, while the broker behind Sentinel fails over to a replica that has not got everything."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from listener.router import BinlogRouter, EventType
from tests.support.listening import wait_for_reader
from tests.support.publishing import ids, waits
from tests.support.sentinel import SentinelBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Broker, Database


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "items", EventType.INSERT, "tests.item")
    return router


@pytest.fixture
def items(database: Database) -> Database:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    return database


def test_what_a_replica_had_not_got_is_published_again_from_the_replay_window_and_nothing_else(
    items: Database, broker: Broker
) -> None:
    with SentinelBroker() as watched, _listener(items, broker, watched, CDC_REPLAY_WINDOW="600") as listener:
        _fail_over_behind(items, watched)
        _wait_for(watched, 1, 2, 3, 4, 5)  # although nobody writes to the database
        assert "went back" in listener.events("broker_lost_data")[0]["reason"]
        _insert(items, 6)
        _wait_for(watched, 1, 2, 3, 4, 5, 6)


def test_without_a_replay_window_it_is_said_that_tasks_are_lost_and_what_comes_next_is_published_once(
    items: Database, broker: Broker
) -> None:
    with SentinelBroker() as watched, _listener(items, broker, watched) as listener:
        _fail_over_behind(items, watched)
        listener.wait_for("broker_lost_data")
        assert "CDC_REPLAY_WINDOW" in listener.wait_for("broker_behind")["hint"]
        _insert(items, 6)
        _wait_for(watched, 1, 2, 3, 6)


def test_with_replicated_a_listener_that_is_killed_and_then_a_failover_lose_nothing(
    items: Database, broker: Broker
) -> None:
    """The database keeps what only the master had, also where the next listener finds it there."""
    settings = {"CDC_DURABILITY": "replicated"}
    with SentinelBroker() as watched:
        with _listener(items, broker, watched, **settings) as listener:
            _insert(items, 1, 2, 3)
            _wait_for(watched, 1, 2, 3)
            watched.wait_for_copies()
            watched.hold_back(*watched.replicas)
            _insert(items, 4)
            _wait_for(watched, 1, 2, 3, 4)
            _wait_until_it_waits_for_a_replica(listener)
            listener.kill()
        with _listener(items, broker, watched, **settings) as listener:
            _wait_until_it_waits_for_a_replica(listener)
            _promote(watched)
            watched.revive_master()  # it follows the new one, for which the listener waits
            _insert(items, 5)
            _wait_for(watched, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "settings",
    [{"CDC_REPLAY_WINDOW": "600"}, {"CDC_DURABILITY": "replicated"}],
    ids=lambda each: next(iter(each)),
)
def test_a_master_that_is_switched_while_a_client_writes_loses_and_doubles_nothing(
    items: Database, broker: Broker, settings: dict[str, str]
) -> None:
    """For a while the old one still takes what is written, which is then thrown away."""
    with SentinelBroker() as watched, _listener(items, broker, watched, **settings):
        numbers = count(1)
        _write_until(items, numbers, lambda: len(_arrived(watched)) > 10)
        watched.fail_over()
        _write_until(items, numbers, watched.has_new_master)
        newest = next(numbers)
        _insert(items, newest)
        _write_until(items, numbers, lambda: newest in _arrived(watched))
        _wait_for(watched, *range(1, next(numbers)))


@contextmanager
def _listener(
    items: Database, broker: Broker, watched: SentinelBroker, **settings: str
) -> Iterator[ListenerProcess]:
    """Run one; at the end it has to stop when asked."""
    environment = {
        "DATABASE_URL": items.url,
        "CACHE_URL": broker.cache_url,
        "CDC_NAME": items.name,
        "CDC_ROUTES": "tests.acceptance.test_broker_failover:setup_router",
        **watched.environment,
        **settings,
    }
    with ListenerProcess(environment) as listener:
        wait_for_reader(items, items.name, timeout=30)
        yield listener
        if listener.process.returncode != -signal.SIGKILL:  # that was us
            assert listener.stop() == 0, listener.log[-3000:]


def _fail_over_behind(items: Database, watched: SentinelBroker) -> None:
    """Let a replica become the master that has the first three of five changes, whose tasks were acknowledged."""
    _insert(items, 1, 2, 3)
    _wait_for(watched, 1, 2, 3)
    watched.wait_for_copies()
    watched.hold_back(*watched.replicas)
    _insert(items, 4, 5)
    _wait_for(watched, 1, 2, 3, 4, 5)
    _promote(watched)


def _promote(watched: SentinelBroker) -> None:
    """Kill the master, and let the replica that was held back take over."""
    watched.kill_master()
    watched.let_go(*watched.replicas)
    watched.wait_for_new_master()


def _write_until(items: Database, numbers: Iterator[int], condition: Callable[[], object]) -> None:
    def is_so() -> bool:
        _insert(items, next(numbers))
        return bool(condition())

    wait_until(is_so, timeout=40, what="the failover to go on")


def _wait_until_it_waits_for_a_replica(listener: ListenerProcess) -> None:
    wait_until(
        lambda: waits(listener.events("waiting"), "No replica"), timeout=20, what="it to wait for a replica"
    )


def _insert(items: Database, *numbers: int) -> None:
    for number in numbers:
        items.execute("INSERT INTO items VALUES (%s)", number)


def _arrived(watched: SentinelBroker) -> list[int]:
    with watched.client as client:
        return ids(client, "celery")


def _wait_for(watched: SentinelBroker, *numbers: int) -> None:
    wait_until(lambda: _arrived(watched) == list(numbers), timeout=40, what=f"{numbers} in the queue")
