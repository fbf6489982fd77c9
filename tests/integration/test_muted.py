"""Changes of a transaction that says so fire nothing."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from cdc_tasks import muted
from cdc_tasks.outbox.transaction import MarkError
from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Broker, Database


@pytest.fixture
def router() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "rows", EventType.INSERT, "tests.usual", queue="usual", args=["id"])
    return router


@pytest.fixture
def audited(router: BinlogRouter) -> BinlogRouter:
    router.register(
        "public", "rows", EventType.INSERT, "tests.audit", queue="audit", args=["id"], even_muted=True
    )
    return router


def make_listener(database: Database, broker: Broker, router: BinlogRouter, **options: Any) -> Listener:
    of_monitor = {name: options.pop(name) for name in ("plugin", "batch_size") if name in options}
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication=database.name, routes=router.routes, **of_monitor
    )
    publisher = RedisPublisher(celery_app(broker.url), name=database.name, **options)
    return Listener(monitor, router, publisher)


def _ids(broker: Broker, queue: str) -> list[int]:
    return [each["body"][0][0] for each in messages(broker.client, queue)]


def _write(database: Database) -> None:
    """Commit the rows 1 to 5, of which 2 to 4 are muted, and then row 6 as the last."""
    with closing(psycopg2.connect(database.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO rows VALUES (1)")
        with muted(connection):
            cursor.execute("INSERT INTO rows SELECT g FROM generate_series(2, 4) g")
        cursor.execute("INSERT INTO rows VALUES (5)")
    database.execute("INSERT INTO rows VALUES (6)")


@pytest.fixture(params=["pgoutput", "wal2json"])
def plugin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_of(plugin: str, request: pytest.FixtureRequest) -> Database:
    """A database whose server has the plugin."""
    found: Database = request.getfixturevalue("database" if plugin == "pgoutput" else "debian_database")
    return found


def test_what_is_muted_fires_nothing_and_the_rest_of_the_transaction_does(
    database_of: Database, broker: Broker, router: BinlogRouter, plugin: str
) -> None:
    database = database_of
    database.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    with running(make_listener(database, broker, router, plugin=plugin), database):
        _write(database)
        wait_until(lambda: len(_ids(broker, "usual")) == 3, what="the tasks", timeout=30)
    assert _ids(broker, "usual") == [1, 5, 6]


def test_a_route_may_ask_for_what_is_muted(
    database_of: Database, broker: Broker, audited: BinlogRouter, plugin: str
) -> None:
    database = database_of
    database.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    with running(make_listener(database, broker, audited, plugin=plugin), database):
        _write(database)
        wait_until(lambda: len(_ids(broker, "audit")) == 6, what="the tasks", timeout=30)
    assert _ids(broker, "audit") == [1, 2, 3, 4, 5, 6]
    assert _ids(broker, "usual") == [1, 5, 6]


def test_a_mark_holds_over_a_restart_in_the_middle_of_the_transaction(
    database: Database, broker: Broker, router: BinlogRouter
) -> None:
    database.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    with running(make_listener(database, broker, router, max_queue=1, batch_size=10), database):
        with closing(psycopg2.connect(database.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO rows SELECT g FROM generate_series(1, 50) g")
            with muted(connection):
                cursor.execute("INSERT INTO rows SELECT g FROM generate_series(51, 5000) g")
            cursor.execute("INSERT INTO rows SELECT g FROM generate_series(5001, 5100) g")
        wait_until(lambda: broker.client.llen("usual"), what="the first batch", timeout=30)
    assert broker.client.llen("usual") < 150
    with running(make_listener(database, broker, router), database):
        wait_until(lambda: len(_ids(broker, "usual")) >= 150, what="the rest", timeout=30)
    assert _ids(broker, "usual") == [*range(1, 51), *range(5001, 5101)]


def test_messages_of_other_programs_and_marks_that_are_rolled_back_mute_nothing(
    database: Database, broker: Broker, router: BinlogRouter
) -> None:
    database.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    emit = "SELECT pg_logical_emit_message(%s, %s, %s)"
    with running(make_listener(database, broker, router), database):
        with closing(psycopg2.connect(database.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(emit, (True, "other", '{"mute": true}'))
            cursor.execute(emit, (False, "cdc_tasks", '{"mute": true}'))
            cursor.execute(emit, (True, "cdc_tasks", '["mute"]'))
            cursor.execute("SAVEPOINT before")
            cursor.execute(emit, (True, "cdc_tasks", '{"mute": true}'))
            cursor.execute("ROLLBACK TO before")
            cursor.execute("INSERT INTO rows VALUES (1)")
        wait_until(lambda: _ids(broker, "usual") == [1], what="the task", timeout=30)


def _with_sqlalchemy_session(url: str) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    engine = sqlalchemy.create_engine(url)
    with Session(engine) as session, session.begin():
        yield session, lambda sql: session.execute(sqlalchemy.text(sql))
    engine.dispose()


def _with_sqlalchemy_connection(url: str) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        yield connection, lambda sql: connection.execute(sqlalchemy.text(sql))
    engine.dispose()


@pytest.mark.parametrize("opened", [_with_sqlalchemy_session, _with_sqlalchemy_connection])
def test_sqlalchemy_can_mute(
    database: Database,
    broker: Broker,
    router: BinlogRouter,
    opened: Callable[[str], Iterator[tuple[Any, Callable[[str], Any]]]],
) -> None:
    database.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    with running(make_listener(database, broker, router), database):
        for connection, execute in opened(database.url.replace("postgresql://", "postgresql+psycopg2://")):
            with muted(connection):
                execute("INSERT INTO rows VALUES (1)")
            execute("INSERT INTO rows VALUES (2)")
        wait_until(lambda: _ids(broker, "usual"), what="the task", timeout=30)
    assert _ids(broker, "usual") == [2]


def test_a_mark_that_would_hold_for_nothing_is_refused(database: Database) -> None:
    with closing(psycopg2.connect(database.url)) as connection:
        connection.autocommit = True
        with pytest.raises(MarkError, match="commits each statement by itself"), muted(connection):
            pass


def test_a_database_that_takes_no_mark_is_refused() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection, pytest.raises(MarkError, match="this is sqlite"), muted(connection):
        pass
    engine.dispose()
