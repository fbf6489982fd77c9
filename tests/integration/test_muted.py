"""Changes of a transaction that says so fire nothing."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from cdc_tasks import muted
from cdc_tasks.outbox.transaction import MarkError
from harness.waiting import at_most, wait_until
from listener.daemon.loop import Listener
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, in_background, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Broker, Database
    from tests.support.mysql.source import MySQLDatabase


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


# --- MySQL and MariaDB: a row of cdc_tasks_marks ---------------------------------------------------------

_MARKS = (
    "CREATE TABLE cdc_tasks_marks (id CHAR(36) CHARACTER SET ascii PRIMARY KEY,"
    " says MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL) ENGINE = InnoDB"
)


@pytest.fixture(params=["mariadb_database", "mysql_database"])
def binlog(request: pytest.FixtureRequest) -> MySQLDatabase:
    """A database with the tables of the marks and of the rows."""
    found: MySQLDatabase = request.getfixturevalue(request.param)
    found.execute(_MARKS, "CREATE TABLE `rows` (id int PRIMARY KEY)")
    return found


def _binlog_listener(
    database: MySQLDatabase, broker: Broker, *, has_audit: bool = True, batch_size: int = 1000, **options: Any
) -> Listener:
    router = BinlogRouter()
    router.register(database.name, "*", EventType.INSERT, "tests.usual", queue="usual", args=["id"])
    if has_audit:
        router.register(
            database.name,
            "rows",
            EventType.INSERT,
            "tests.audit",
            queue="audit",
            args=["id"],
            even_muted=True,
        )
    monitor = BinlogMonitor(
        database.url, name=database.name, routes=router.routes, batch_size=batch_size, from_start=False
    )
    return Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=database.name, **options))


def _bulk(first: int, last: int) -> str:
    return f"INSERT INTO `rows` VALUES {', '.join(f'({number})' for number in range(first, last + 1))}"


@contextmanager
def _reading(listener: Listener) -> Iterator[None]:
    with capture_logs() as logs, in_background(listener.run) as run:
        wait_until(
            lambda: run.done() or any(line["event"] == "streaming" for line in logs), what="the listener"
        )
        try:
            yield
        finally:
            listener.stop()
            run.result(at_most(60))


def test_what_is_muted_in_a_binlog_fires_nothing_but_for_who_asks(
    binlog: MySQLDatabase, broker: Broker
) -> None:
    with _reading(_binlog_listener(binlog, broker)):
        with closing(binlog.connect(autocommit=False)) as connection, connection.cursor() as cursor:
            cursor.execute(_bulk(1, 1))
            with muted(connection):
                cursor.execute(_bulk(2, 400))
                cursor.execute("UPDATE `rows` SET id = id + 100000 WHERE id BETWEEN 100 AND 200")
            cursor.execute(_bulk(1000, 1000))
            connection.commit()
            with muted(connection):  # a transaction that says nothing at its end
                cursor.execute(_bulk(1001, 1001))
            connection.commit()
            cursor.execute(_bulk(1002, 1002))
            cursor.execute("SAVEPOINT early")
            with muted(connection):
                cursor.execute(_bulk(1003, 1003))
            cursor.execute("ROLLBACK TO early")
            cursor.execute(_bulk(1004, 1004))
            connection.commit()
            assert binlog.fetch("SELECT count(*) FROM cdc_tasks_marks") == [(0,)]
        mark = "INSERT INTO cdc_tasks_marks VALUES (UUID(), '%s')"
        binlog.execute("BEGIN", mark % '{"mute": true}', _bulk(1005, 1005), "COMMIT", _bulk(1006, 1006))
        binlog.execute("BEGIN", mark % "no JSON", mark % "[1]", _bulk(1007, 1007), "COMMIT")
        wait_until(lambda: _ids(broker, "usual")[-1:] == [1007], what="the last task", timeout=60)
    assert _ids(broker, "usual") == [1, 1000, 1002, 1004, 1006, 1007]
    assert _ids(broker, "audit") == [*range(1, 401), *range(1000, 1003), *range(1004, 1008)]


def test_a_mark_in_a_binlog_holds_over_a_restart_and_the_ids_are_the_same_whoever_asks(
    binlog: MySQLDatabase, broker: Broker
) -> None:
    def ids(queue: str) -> dict[int, str]:
        return {each["body"][0][0]: each["headers"]["id"] for each in messages(broker.client, queue)}

    with _reading(_binlog_listener(binlog, broker, max_queue=1, batch_size=10, has_audit=False)):
        with closing(binlog.connect(autocommit=False)) as connection, connection.cursor() as cursor:
            cursor.execute(_bulk(1, 50))
            with muted(connection):
                cursor.execute(_bulk(51, 5000))
            cursor.execute(_bulk(5001, 5100))
            connection.commit()
        wait_until(lambda: broker.client.llen("usual") >= 10, what="the first batch", timeout=60)
    assert broker.client.llen("usual") < 150
    with _reading(_binlog_listener(binlog, broker)):
        wait_until(lambda: len(_ids(broker, "usual")) >= 150, what="the rest", timeout=60)
    assert _ids(broker, "usual") == [*range(1, 51), *range(5001, 5101)]
    assert len(set(ids("usual").values())) == 150
    audited = ids("audit")
    assert set(audited) >= set(range(51, 5101))
    assert len(set(audited.values())) == len(audited)


@pytest.mark.parametrize("opened", [_with_sqlalchemy_session, _with_sqlalchemy_connection])
def test_sqlalchemy_can_mute_on_mariadb(
    mariadb_database: MySQLDatabase,
    broker: Broker,
    opened: Callable[[str], Iterator[tuple[Any, Callable[[str], Any]]]],
) -> None:
    mariadb_database.execute(_MARKS, "CREATE TABLE `rows` (id int PRIMARY KEY)")
    with _reading(_binlog_listener(mariadb_database, broker)):
        for connection, execute in opened(mariadb_database.url.replace("mysql://", "mysql+pymysql://")):
            with muted(connection):
                execute("INSERT INTO `rows` VALUES (1)")
            execute("INSERT INTO `rows` VALUES (2)")
        wait_until(lambda: _ids(broker, "usual"), what="the task", timeout=30)
    assert _ids(broker, "usual") == [2]


def test_a_mark_for_which_a_binlog_has_no_table_is_refused_with_the_table(
    mariadb_database: MySQLDatabase,
) -> None:
    with closing(mariadb_database.connect()) as connection:
        with pytest.raises(MarkError, match="commits each statement by itself"), muted(connection):
            pass
        connection.begin()
        with pytest.raises(MarkError, match="no table cdc_tasks_marks") as refused, muted(connection):
            pass
        assert refused.value.code == "mark_no_table"
        mariadb_database.execute(refused.value.hint)
        with muted(connection):
            pass
        connection.rollback()
    url = mariadb_database.url.replace("mysql://", "mysql+pymysql://")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as open_one, pytest.raises(MarkError, match="by itself"), muted(open_one):
        pass
    engine.dispose()


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
