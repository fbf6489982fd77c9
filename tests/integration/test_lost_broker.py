"""A broker that comes back without its data: reported, and repaired from the database's log as far as that reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import structlog

from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, ids

if TYPE_CHECKING:
    from tests.conftest import Database


def listener_on(database: Database, url: str, **options: Any) -> Listener:
    router = BinlogRouter()
    router.register("public", "items", EventType.INSERT, "tests.task")
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=router.routes, **options
    )
    return Listener(monitor, router, RedisPublisher(celery_app(url), name=database.name))


def insert(database: Database, *numbers: int) -> None:
    for number in numbers:
        database.execute("INSERT INTO items VALUES (%s)", number)


def arrived(url: str) -> list[int]:
    with redis.Redis.from_url(url) as client:
        return ids(client, "celery")


def test_within_the_replay_window_all_is_published_again(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    with (
        ValkeyServer() as broker,
        structlog.testing.capture_logs() as logs,
        running(listener_on(database, broker.url, replay_window=600), database),
    ):
        insert(database, 1, 2, 3)
        wait_until(lambda: arrived(broker.url) == [1, 2, 3], what="the tasks")
        broker.restart(keep_data=False)
        insert(database, 4)
        wait_until(lambda: arrived(broker.url) == [1, 2, 3, 4], what="the tasks again", timeout=20)
    assert [each for each in logs if each["event"] == "reading_again" and "gone" in each["reason"]]


def test_a_broker_that_lost_its_data_while_no_listener_ran_is_said_and_mended(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    with ValkeyServer() as broker:
        with running(listener_on(database, broker.url, replay_window=600), database):
            insert(database, 1, 2, 3)
            wait_until(lambda: arrived(broker.url) == [1, 2, 3], what="the tasks")
        broker.restart(keep_data=False)
        with running(listener_on(database, broker.url, replay_window=600), database):
            wait_until(lambda: arrived(broker.url) == [1, 2, 3], what="the tasks again")


def test_without_a_window_the_loss_is_said_and_what_comes_next_is_published_once(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    with ValkeyServer() as broker, structlog.testing.capture_logs() as logs:
        with running(listener_on(database, broker.url), database):
            insert(database, 1)
            wait_until(lambda: arrived(broker.url) == [1], what="the task")
            wait_until(lambda: acknowledged_all(database), what="the acknowledgement")
        assert not [each for each in logs if each["event"] == "broker_behind"]
        broker.restart(keep_data=False)
        with running(listener_on(database, broker.url), database):
            wait_until(
                lambda: [each for each in logs if each["event"] == "broker_behind"], what="the warning"
            )
            insert(database, 2, 3)
            wait_until(lambda: arrived(broker.url) == [2, 3], what="the tasks")


def test_an_ordinary_restart_warns_of_nothing(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    with ValkeyServer() as broker, structlog.testing.capture_logs() as logs:
        for number in range(1, 4):
            with running(listener_on(database, broker.url), database):
                insert(database, number)
                wait_until(lambda: len(arrived(broker.url)) == number, what="the task")  # noqa: B023
                wait_until(lambda: acknowledged_all(database), what="the acknowledgement")
        assert arrived(broker.url) == [1, 2, 3]
    assert not [each for each in logs if each["event"] == "broker_behind"]


def acknowledged_all(database: Database) -> bool:
    query = (
        "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = %s"
    )
    ((done,),) = database.fetch(query, database.name)
    return bool(done)
