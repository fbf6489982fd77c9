"""A task that a transaction enqueues, on each kind of connection that an application may have."""

from __future__ import annotations

import asyncio
from contextlib import closing
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import cdc_tasks
from cdc_tasks.outbox.transaction import MarkError
from cdc_tasks.routing.enqueued import CREATE_MARKS
from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.mysql.client.connection import Address
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter
from tests.support.listening import running
from tests.support.publishing import celery_app, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Broker, Database
    from tests.support.mysql.source import MySQLDatabase

# mysqlclient has no wheels for Linux, and asyncmy none for each Python: they are tested where they are installed.
_DRIVERS = ["pymysql", *(["mysqldb"] if find_spec("MySQLdb") else [])]
_ASYNC_DRIVERS = ["aiomysql", *(["asyncmy"] if find_spec("asyncmy") else [])]


class _OwnSession(Session):
    """As Flask-SQLAlchemy has one."""


def _enqueue(connection: Any, name: str) -> None:
    cdc_tasks.enqueue(connection, "shop.send", name, "50 % of :all {it} Ä ☺ \\ '", queue="shop")


def _run(connection: Any, statement: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)


def _through_the_driver(connect: Callable[[], Any], name: str) -> None:
    """Commit one task; roll back one to a savepoint, and one with its transaction; try one without a transaction."""
    with closing(connect()) as connection:
        _enqueue(connection, name)
        _run(connection, "SAVEPOINT early")
        _enqueue(connection, "rolled back")
        _run(connection, "ROLLBACK TO SAVEPOINT early")
        connection.commit()
        _enqueue(connection, "rolled back")
        connection.rollback()
        _commit_each_statement(connection)
        with pytest.raises(MarkError) as caught:
            _enqueue(connection, "alone")
        assert caught.value.code == "mark_in_autocommit"


def _commit_each_statement(connection: Any) -> None:
    if callable(connection.autocommit):
        connection.autocommit(True)
    else:
        connection.autocommit = True


def _through_sqlalchemy(url: str, name: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with _OwnSession(engine) as session, session.begin():
        _enqueue(session, name)
        with session.begin_nested() as early:
            _enqueue(session, "rolled back")
            early.rollback()
    with engine.connect() as connection:
        _enqueue(connection, "rolled back")
        connection.rollback()
    with closing(engine.raw_connection()) as connection:
        _enqueue(connection, "rolled back")
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(MarkError),
    ):
        _enqueue(connection, "alone")
    engine.dispose()


async def _through_async_sqlalchemy(url: str, name: str) -> None:
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        await session.run_sync(_enqueue, name)
        async with session.begin_nested() as early:
            await session.run_sync(_enqueue, "rolled back")
            await early.rollback()
    async with engine.connect() as connection:
        await connection.run_sync(_enqueue, "rolled back")
        await connection.rollback()
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(MarkError):
            await connection.run_sync(_enqueue, "alone")
        with pytest.raises(MarkError) as caught:
            _enqueue(connection, "not awaited")
        assert "run_sync" in (caught.value.hint or "")
    await engine.dispose()


def _router() -> BinlogRouter:
    router = BinlogRouter()
    router.accept("shop.*")
    return router


def _names(broker: Broker) -> list[str]:
    return [each["body"][0][0] for each in messages(broker.client, "shop")]


def test_each_driver_of_postgresql(database: Database, broker: Broker) -> None:
    router = _router()
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication=database.name, routes=router.routes
    )
    url = database.url.replace("postgresql:", "postgresql+{}:").format
    listener = Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=database.name))
    with running(listener, database):
        _through_the_driver(lambda: psycopg2.connect(database.url), "psycopg2")
        _through_the_driver(lambda: psycopg.connect(database.url), "psycopg")
        for driver in ("psycopg2", "psycopg"):
            _through_sqlalchemy(url(driver), f"{driver} in SQLAlchemy")
        for driver in ("psycopg", "asyncpg"):
            asyncio.run(_through_async_sqlalchemy(url(driver), f"{driver} in asyncio"))
        with psycopg.connect(database.url, autocommit=True) as connection, connection.transaction():
            _enqueue(connection, "psycopg in a block")
        wait_until(lambda: "psycopg in a block" in _names(broker), what="the last task", timeout=30)
    assert _names(broker) == [
        "psycopg2",
        "psycopg",
        "psycopg2 in SQLAlchemy",
        "psycopg in SQLAlchemy",
        "psycopg in asyncio",
        "asyncpg in asyncio",
        "psycopg in a block",
    ]


def test_each_driver_of_mysql_and_mariadb(any_mysql: MySQLDatabase, broker: Broker) -> None:
    any_mysql.execute(CREATE_MARKS)
    router = _router()
    monitor = BinlogMonitor(any_mysql.url, name=any_mysql.name, routes=router.routes, from_start=False)
    address = Address.parse(any_mysql.url)
    to = {"host": address.host, "port": address.port, "user": address.user, "password": address.password}
    listener = Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=any_mysql.name))
    with running(listener, any_mysql):
        for driver in _DRIVERS:
            module: Any = import_module({"mysqldb": "MySQLdb"}.get(driver, driver))
            _through_the_driver(partial(module.connect, **to, database=any_mysql.name), driver)
        url = any_mysql.url.replace("mysql:", "mysql+{}:").replace("mariadb:", "mysql+{}:").format
        for driver in _DRIVERS:
            _through_sqlalchemy(url(driver), f"{driver} in SQLAlchemy")
        for driver in _ASYNC_DRIVERS:
            asyncio.run(_through_async_sqlalchemy(url(driver), f"{driver} in asyncio"))
        wait_until(
            lambda: f"{_ASYNC_DRIVERS[-1]} in asyncio" in _names(broker), what="the last task", timeout=30
        )
    assert _names(broker) == [
        *_DRIVERS,
        *(f"{each} in SQLAlchemy" for each in _DRIVERS),
        *(f"{each} in asyncio" for each in _ASYNC_DRIVERS),
    ]
