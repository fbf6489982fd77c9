"""Coalesced and batched routes from commit to queue, through the loop, and through its end in the middle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cdc_tasks.routing.contexts import CONTEXT_HEADER
from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, messages

if TYPE_CHECKING:
    from tests.conftest import Broker, Database


def make_listener(database: Database, broker: Broker, router: BinlogRouter, **options: Any) -> Listener:
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=router.routes, batch_size=500
    )
    return Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=database.name, **options))


def test_many_updates_in_one_or_in_many_transactions_lead_to_few_refreshes_the_last_after_the_last_change(
    database: Database, broker: Broker
) -> None:
    database.execute("CREATE TABLE roles (id int PRIMARY KEY, name text)")
    router = BinlogRouter()
    router.register(
        "public", "roles", EventType.ALL, "tests.refresh", args=lambda change: [change.table], coalesce=True
    )
    with running(make_listener(database, broker, router, coalesce_interval=0.5), database):
        began = time.monotonic()
        database.execute("INSERT INTO roles SELECT g, 'r' FROM generate_series(1, 5000) g")
        for number in range(300):
            database.execute("UPDATE roles SET name = 'x' WHERE id = %s", number)
        wait_until(
            lambda: not broker.client.exists(f"cdc:{database.name}:held"), what="nothing to be deferred"
        )
        wait_until(
            lambda: len(messages(broker.client, "celery")) >= 2, what="the refresh after the last change"
        )
        count = len(messages(broker.client, "celery"))
        took = time.monotonic() - began
    assert count <= took / 0.5 + 2  # one at once, and then one an interval


def test_batches_survive_the_listeners_end_in_order_and_complete(database: Database, broker: Broker) -> None:
    database.execute("CREATE TABLE events (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "events", EventType.INSERT, "tests.index", batch=400)
    with running(make_listener(database, broker, router, batch_wait=600), database):
        database.execute("INSERT INTO events SELECT g FROM generate_series(1, 1000) g")
        wait_until(lambda: len(messages(broker.client, "celery")) == 2, what="the full batches")
        key = f"cdc:{database.name}:held:{router.routes[0].id}"
        wait_until(lambda: broker.client.llen(key) == 200, what="the rest to be kept")
    with running(make_listener(database, broker, router), database):
        wait_until(lambda: len(messages(broker.client, "celery")) == 3, what="the rest")
    arrived = [
        change["after"]["id"]
        for message in messages(broker.client, "celery")
        for change in message["body"][0][0]
    ]
    assert arrived == list(range(1, 1001))
    assert broker.client.keys("*held*") == []


def test_reading_pauses_while_the_queue_is_too_long_and_goes_on_by_itself(
    database: Database, broker: Broker
) -> None:
    database.execute("CREATE TABLE events (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "events", EventType.INSERT, "tests.index")
    taken = []
    with running(make_listener(database, broker, router, max_queue=700), database):
        database.execute("INSERT INTO events SELECT g FROM generate_series(1, 3000) g")
        while len(taken) < 3000:
            wait_until(lambda: broker.client.llen("celery"), what="more messages")
            assert broker.client.llen("celery") <= 1200  # the limit, and a batch
            taken += broker.client.rpop("celery", 300)
    assert len(set(taken)) == 3000


def test_a_listener_that_pauses_can_be_stopped(database: Database, broker: Broker) -> None:
    database.execute("CREATE TABLE events (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "events", EventType.INSERT, "tests.index")
    with running(make_listener(database, broker, router, max_queue=100), database):
        database.execute("INSERT INTO events SELECT g FROM generate_series(1, 3000) g")
        wait_until(lambda: broker.client.llen("celery") > 100, what="the first batches")
    assert broker.client.llen("celery") <= 600  # the limit, and a batch


def test_what_coalesced_and_batched_tasks_carry_of_contexts(database: Database, broker: Broker) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register(
        "public", "items", "insert", "tests.refresh", queue="refresh", args=lambda c: [c.table], coalesce=True
    )
    router.register("public", "items", "insert", "tests.index", queue="index", batch=3)
    says = "SELECT pg_logical_emit_message(true, 'cdc_tasks', '{\"context\": {\"user\": %s}}')"
    with running(make_listener(database, broker, router, coalesce_interval=0.2), database):
        database.execute(f"{says % 1}; INSERT INTO items VALUES (1)")
        wait_until(lambda: len(messages(broker.client, "refresh")) == 1, what="the first refresh")
        database.execute(
            f"{says % 2}; INSERT INTO items VALUES (2); {says % 3}; INSERT INTO items VALUES (3)"
        )
        last = lambda: messages(broker.client, "refresh")[-1]["headers"][CONTEXT_HEADER]  # noqa: E731
        wait_until(lambda: last() == {"user": 3}, what="the refresh that stands for the last one")
        wait_until(lambda: messages(broker.client, "index"), what="the batch")
    (batch,) = messages(broker.client, "index")
    assert CONTEXT_HEADER not in batch["headers"]
    assert [each["context"] for each in batch["body"][0][0]] == [{"user": 1}, {"user": 2}, {"user": 3}]
