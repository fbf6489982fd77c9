"""What many tables cost: sessions and connections stay as few as they are for some, calls grow with the tables."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.kombu import message
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, change, fire, position, redis_publisher
from tests.support.rabbitmq import kombu_publisher

if TYPE_CHECKING:
    import redis

    from harness.machine_servers import RabbitMQServer
    from listener.postgres.monitor import PluginName
    from tests.conftest import Broker, Database

FEW, MANY = 25, 50
_HANDFUL = 12


def routes_for(count: int) -> BinlogRouter:
    """Return a route for each of the tables, and one for all."""
    router = BinlogRouter()
    for number in range(count):
        router.register("public", f"t_{number}", EventType.ALL, f"tests.t_{number}", columns=["id", "kind"])
    router.register("public", "t_*", EventType.ALL, "tests.all")
    return router


def make_tables(database: Database, count: int) -> None:
    """Make tables with types of their own: an enum, an array of it, a composite type and a domain."""
    for number in range(count):
        database.execute(
            f"""CREATE TYPE kind_{number} AS ENUM ('a', 'b');
            CREATE TYPE pair_{number} AS (one int, other text);
            CREATE DOMAIN amount_{number} AS numeric CHECK (VALUE > 0);
            CREATE TABLE t_{number} (id int PRIMARY KEY, kind kind_{number}, kinds kind_{number}[],
                pair pair_{number}, amount amount_{number})"""
        )


def sessions(database: Database) -> int:
    """Return how many sessions the database has had, those that have ended for certain."""
    ((count,),) = database.fetch(
        "SELECT sessions FROM pg_stat_database WHERE datname = %s AND pg_stat_clear_snapshot() IS NOT NULL",
        database.name,
    )
    return int(count)


def connections(client: redis.Redis) -> int:
    return int(client.info("stats")["total_connections_received"])


@pytest.mark.parametrize("plugin", ["pgoutput", "wal2json"])
def test_the_first_change_of_each_table_takes_no_session_and_no_connection_of_its_own(
    debian_database: Database, broker: Broker, plugin: PluginName
) -> None:
    database, router = debian_database, routes_for(MANY)
    make_tables(database, MANY)
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=router.routes, plugin=plugin
    )
    listener = Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=database.name))
    with running(listener, database):
        had = connections(broker.client)
        for number in range(MANY):
            database.execute(f"INSERT INTO t_{number} VALUES (1, 'a', '{{a,b}}', '(1,x)', 2.5)")
        wait_until(lambda: broker.client.llen("celery") == 2 * MANY, what="all tasks")
        assert connections(broker.client) - had < _HANDFUL
        ((open_now,),) = database.fetch(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", database.name
        )
        assert open_now < _HANDFUL
    assert sessions(database) < _HANDFUL


def test_a_session_for_types_that_somebody_ended_is_opened_again(database: Database) -> None:
    make_tables(database, 2)
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=routes_for(2).routes
    )
    with closing(monitor):
        monitor.open(saved=None)
        batches = monitor.batches(None)
        for number in range(2):
            database.execute(f"INSERT INTO t_{number} VALUES (1, 'a', '{{a,b}}', '(1,x)', 2.5)")
            batch = next(batch for batch in batches if batch.changes)
            assert batch.changes[0].row["kinds"] == ["a", "b"]
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )


def test_the_messages_of_many_tables_and_routes_are_made_over_one_connection(any_broker: Broker) -> None:
    needed = {}
    for count in (FEW, MANY):
        router, had = routes_for(count), connections(any_broker.client)
        with redis_publisher(any_broker.url, name=f"of-{count}") as publisher:
            for number in range(count):
                tasks = fire(router, [change(number + 1, table=f"t_{number}")])
                publisher.publish(tasks, checkpoint=position(number + 1))
        needed[count] = connections(any_broker.client) - had
        assert any_broker.client.llen("celery") == 2 * count
        any_broker.client.delete("celery")
    assert needed[MANY] == needed[FEW] < _HANDFUL


def test_celery_is_asked_for_a_message_once_a_route_however_many_tables_it_watches(
    rabbitmq_server: RabbitMQServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    make = message.make_message

    def counting(app: Any, route: Any, **options: Any) -> Any:
        asked.append(route.task)
        return make(app, route, **options)

    monkeypatch.setattr(message, "make_message", counting)
    router = routes_for(3)
    with kombu_publisher(rabbitmq_server.url, broker, "many-tables") as publisher:
        for number in range(MANY):
            tasks = fire(router, [change(number + 1, table=f"t_{number}")])
            publisher.publish(tasks, checkpoint=position(number + 1))
    assert sorted(asked) == ["tests.all", "tests.t_0", "tests.t_1", "tests.t_2"]
