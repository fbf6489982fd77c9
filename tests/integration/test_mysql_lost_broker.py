"""A broker that comes back without its data, on MySQL and MariaDB: reported, and repaired from the binlog."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
import structlog

from harness.embedded_servers import ValkeyServer
from harness.waiting import at_most, wait_until
from listener.core.source import GapError
from listener.daemon.bookmarked_monitor import BookmarkedMonitor
from listener.daemon.loop import Listener
from listener.mysql.log.position import BinlogPosition
from listener.mysql.monitor import BinlogMonitor
from listener.publish.bookmark import Bookmark, read_bookmark
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running, wait_for_replica
from tests.support.publishing import celery_app, ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker
    from tests.support.mysql.source import MySQLDatabase


@pytest.fixture
def items(any_mysql: MySQLDatabase) -> MySQLDatabase:
    any_mysql.execute("CREATE TABLE items (id int PRIMARY KEY)")
    return any_mysql


@pytest.fixture
def lossy() -> Iterator[ValkeyServer]:
    """A broker of the test's own, which forgets everything when it is restarted."""
    with ValkeyServer() as server:
        yield server


def listener_on(
    database: MySQLDatabase, broker_url: str, cache_url: str, *, replay_window: float = 0, **options: Any
) -> Listener:
    router = BinlogRouter()
    router.register(database.name, "items", EventType.INSERT, "tests.task")
    reader = BinlogMonitor(database.url, name=database.name, routes=router.routes, **options)
    bookmark = Bookmark(cache_url, name=database.name, replay_window=replay_window)
    publisher = RedisPublisher(celery_app(broker_url), name=database.name)
    return Listener(BookmarkedMonitor(reader, bookmark), router, publisher)


@contextmanager
def listening(
    database: MySQLDatabase, broker: ValkeyServer, cache_url: str, **options: Any
) -> Iterator[list[Any]]:
    """Run a listener, and give what it logs."""
    with (
        structlog.testing.capture_logs() as logs,
        running(listener_on(database, broker.url, cache_url, **options), database),
    ):
        yield logs


def insert(database: MySQLDatabase, *numbers: int) -> None:
    database.execute(*(f"INSERT INTO items VALUES ({number})" for number in numbers))


def wait_for_tasks(url: str, expected: list[int]) -> None:
    def arrived() -> bool:
        with redis.Redis.from_url(url) as client:
            return ids(client, "celery") == expected

    wait_until(arrived, what=f"the tasks {expected}", timeout=20)


def events(logs: list[Any], name: str) -> list[Any]:
    return [each for each in logs if each["event"] == name]


def wait_for_bookmark(database: MySQLDatabase, cache_url: str) -> None:
    """Wait until all that is committed by now is behind the bookmark."""
    end = database.end_of_log()
    wait_until(
        lambda: BinlogPosition.parse(read_bookmark(cache_url, database.name) or "none.0:0:0") >= end,
        what="the bookmark",
    )


def test_while_the_listener_runs_what_comes_next_is_published_once(
    items: MySQLDatabase, lossy: ValkeyServer
) -> None:
    # The cache is lost too: what is left is what the listener itself knows.
    with listening(items, lossy, lossy.url_of(1)) as logs:
        insert(items, 1, 2)
        wait_for_tasks(lossy.url, [1, 2])
        lossy.stop()
        insert(items, 3)
        lossy.wipe()
        lossy.start()
        insert(items, 4)
        wait_for_tasks(lossy.url, [3, 4])
    assert events(logs, "broker_lost_data")
    assert events(logs, "broker_behind")


def test_while_no_listener_runs_nothing_that_is_committed_meanwhile_is_lost(
    items: MySQLDatabase, lossy: ValkeyServer, broker: Broker
) -> None:
    with listening(items, lossy, broker.cache_url):
        insert(items, 1)
        wait_for_tasks(lossy.url, [1])
    insert(items, 2)
    lossy.restart(keep_data=False)
    insert(items, 3)
    with listening(items, lossy, broker.cache_url) as logs:
        wait_for_tasks(lossy.url, [2, 3])
    (said,) = events(logs, "broker_behind")
    assert said["log_level"] == "error"
    assert "the bookmark" in said["reason"]
    assert not events(logs, "first_start")


def test_within_the_replay_window_what_the_broker_held_is_published_again(
    items: MySQLDatabase, lossy: ValkeyServer, broker: Broker
) -> None:
    with listening(items, lossy, broker.cache_url, replay_window=600):
        insert(items, 1, 2)
        wait_for_tasks(lossy.url, [1, 2])
        lossy.restart(keep_data=False)
        insert(items, 3)
        wait_for_tasks(lossy.url, [1, 2, 3])
    lossy.restart(keep_data=False)
    with listening(items, lossy, broker.cache_url, replay_window=600):
        wait_for_tasks(lossy.url, [1, 2, 3])


def test_a_broker_with_an_old_copy_of_its_data_is_said_and_gets_what_it_lacks(
    items: MySQLDatabase, lossy: ValkeyServer, broker: Broker
) -> None:
    with listening(items, lossy, broker.cache_url):
        insert(items, 1)
        wait_for_tasks(lossy.url, [1])
    with redis.Redis.from_url(lossy.url) as client:
        key = f"cdc:{items.name}:checkpoint"
        old = client.hgetall(key)
        with listening(items, lossy, broker.cache_url):
            insert(items, 2)
            wait_for_tasks(lossy.url, [1, 2])
            wait_for_bookmark(items, broker.cache_url)
        client.hset(key, mapping=old)
        client.lpop("celery")
    with listening(items, lossy, broker.cache_url) as logs:
        wait_for_tasks(lossy.url, [1, 2])
    (said,) = events(logs, "broker_behind")
    assert "its checkpoint" in said["reason"]


def test_log_that_was_purged_meanwhile_is_a_gap(
    items: MySQLDatabase, lossy: ValkeyServer, broker: Broker
) -> None:
    with listening(items, lossy, broker.cache_url):
        insert(items, 1)
        wait_for_tasks(lossy.url, [1])
    insert(items, 2)
    items.purge_logs()
    insert(items, 3)
    lossy.restart(keep_data=False)
    with pytest.raises(GapError, match="purged"):
        listener_on(items, lossy.url, broker.cache_url).run()
    with listening(items, lossy, broker.cache_url, accept_gap=True):
        wait_for_tasks(lossy.url, [3])


def test_a_first_start_says_that_it_is_one_and_an_ordinary_one_says_nothing(
    items: MySQLDatabase, lossy: ValkeyServer, broker: Broker
) -> None:
    logs: list[Any] = []
    for number in range(1, 4):
        with listening(items, lossy, broker.cache_url) as said:
            insert(items, number)
            wait_for_tasks(lossy.url, list(range(1, number + 1)))
        logs += said
    assert len(events(logs, "first_start")) == 1
    assert not events(logs, "broker_behind")


def test_a_first_start_waits_for_the_cache_which_alone_may_know_better(
    items: MySQLDatabase, lossy: ValkeyServer
) -> None:
    with ValkeyServer() as cache, structlog.testing.capture_logs() as logs:
        cache.stop()
        listener = listener_on(items, lossy.url, cache.url)
        thread = threading.Thread(target=listener.run)
        thread.start()
        try:
            wait_until(lambda: events(logs, "waiting"), what="the listener to wait")
            assert not events(logs, "streaming")
            cache.start()
            wait_for_replica(items, items.name)
            insert(items, 1)
            wait_for_tasks(lossy.url, [1])
        finally:
            listener.stop()
            thread.join(at_most(10))
        assert [each["what"] for each in events(logs, "back")] == ["cache"]


def test_a_cache_that_is_away_holds_up_nothing_else(items: MySQLDatabase, lossy: ValkeyServer) -> None:
    with ValkeyServer() as cache:
        with listening(items, lossy, cache.url):
            insert(items, 1)
            wait_for_tasks(lossy.url, [1])
            cache.stop()
            insert(items, 2)
            wait_for_tasks(lossy.url, [1, 2])
        with listening(items, lossy, cache.url) as logs:
            insert(items, 3)
            wait_for_tasks(lossy.url, [1, 2, 3])
        assert events(logs, "bookmark_not_kept")
