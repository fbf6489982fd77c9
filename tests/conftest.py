"""Real servers for tests: one of each kind a session, started when first asked for; fresh state each."""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import redis
from hypothesis import HealthCheck, settings
from psycopg2 import sql

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.given_mysql import GivenMySQLServer, MariaDBServer, MySQLServer, shared_mysql_server
from harness.machine_servers import DebianPostgresServer, RabbitMQServer, RedisServer
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.mysql.source import MySQLDatabase, MySQLSource
from tests.support.sessions import FailuresAtOnce, LogsOfFailures, use_own_temporary_directory
from tests.support.warm_python import WARM
from tests.support.wheel import build, environment_with

if TYPE_CHECKING:
    from collections.abc import Iterator


# A machine that is busy with other work is slow at any example.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.hookimpl(trylast=True)  # pytest's own reporter is there
def pytest_configure(config: pytest.Config) -> None:
    """Tell of a failed test at once, and give what the tests start a temporary directory of this process."""
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(FailuresAtOnce(terminal))
    config.pluginmanager.register(LogsOfFailures())
    config.add_cleanup(use_own_temporary_directory())
    # The processes of one run fill the data directory of each kind of server once.
    MariaDBServer.templates = MySQLServer.templates = Path(tempfile.gettempdir())


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database of a test's own."""

    name: str
    server: PostgresServer
    connection: psycopg2.extensions.connection  # superuser, autocommit

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)

    def execute(self, statement: str, *arguments: Any) -> None:
        """Run one statement, or several without arguments, in a transaction of its own."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)

    def fetch(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return cursor.fetchall()

    def connect(self) -> psycopg2.extensions.connection:
        """Return one more connection, with transactions; the test closes it."""
        return psycopg2.connect(self.url)


@dataclass(frozen=True, kw_only=True)
class Broker:
    """An empty Redis-compatible server: database 0 for Celery, database 1 for the cache."""

    server: ValkeyServer
    client: redis.Redis
    cache: redis.Redis

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def cache_url(self) -> str:
        return self.server.url_of(1)


@pytest.fixture(scope="session", autouse=True)
def _warm_workers() -> Iterator[None]:
    """Workers start without the imports of packages; where that matters, a test takes `cold_workers`."""
    Worker.popen = WARM.popen
    yield
    Worker.popen = subprocess.Popen
    WARM.close()


@pytest.fixture
def cold_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as a user starts them: their memory is their own."""
    monkeypatch.setattr(Worker, "popen", subprocess.Popen)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL 18 from the wheel; a test that restarts or breaks a server starts one of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def debian_postgres_server() -> Iterator[DebianPostgresServer]:
    """PostgreSQL 15 with wal2json, from Debian's packages."""
    with DebianPostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """Valkey from the wheel."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Redis from Debian's packages."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def running_rabbitmq() -> Iterator[RabbitMQServer]:
    """RabbitMQ from Debian's packages."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture
def rabbitmq_server(running_rabbitmq: RabbitMQServer) -> RabbitMQServer:
    """RabbitMQ without tasks; other queues and exchanges may be there."""
    running_rabbitmq.forget_tasks()
    return running_rabbitmq


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    """MariaDB from Debian's packages."""
    with MariaDBServer() as server:
        yield server


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[GivenMySQLServer | MySQLServer]:
    """The server of CDC_TEST_MYSQL_URL, or MySQL 9 from Debian unstable, unpacked into the user's cache."""
    with shared_mysql_server() as server:
        yield server


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a team installs."""
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has the wheel: CDC_TEST_PYTHON, or one made for it."""
    if given := os.environ.get("CDC_TEST_PYTHON"):
        return Path(given)
    return environment_with(request.getfixturevalue("wheel"), tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database on PostgreSQL 18."""
    yield from _fresh_database(postgres_server)


@pytest.fixture
def debian_database(debian_postgres_server: DebianPostgresServer) -> Iterator[Database]:
    """A fresh database on PostgreSQL 15, where wal2json is."""
    yield from _fresh_database(debian_postgres_server)


@pytest.fixture(params=["postgres_server", "debian_postgres_server"])
def any_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database: the test runs on each version of PostgreSQL."""
    yield from _fresh_database(request.getfixturevalue(request.param))


@pytest.fixture
def mariadb_database(mariadb_server: MariaDBServer) -> Iterator[MySQLDatabase]:
    """A fresh database on MariaDB."""
    yield from _fresh_mysql_database(mariadb_server)


@pytest.fixture
def mysql_database(mysql_server: MySQLServer) -> Iterator[MySQLDatabase]:
    """A fresh database on MySQL."""
    yield from _fresh_mysql_database(mysql_server)


@pytest.fixture(params=["mariadb_server", "mysql_server"])
def any_mysql(request: pytest.FixtureRequest) -> Iterator[MySQLDatabase]:
    """A fresh database: the test runs on MariaDB and on MySQL."""
    yield from _fresh_mysql_database(request.getfixturevalue(request.param))


@pytest.fixture
def source(any_mysql: MySQLDatabase) -> Iterator[MySQLSource]:
    """The same, ready to be watched."""
    with MySQLSource(any_mysql, name=any_mysql.name) as source:
        yield source


@pytest.fixture
def mariadb_source(mariadb_database: MySQLDatabase) -> Iterator[MySQLSource]:
    """A fresh database on MariaDB, ready to be watched."""
    with MySQLSource(mariadb_database, name=mariadb_database.name) as source:
        yield source


@pytest.fixture
def mysql_source(mysql_database: MySQLDatabase) -> Iterator[MySQLSource]:
    """A fresh database on MySQL, ready to be watched."""
    with MySQLSource(mysql_database, name=mysql_database.name) as source:
        yield source


@pytest.fixture
def broker(valkey_server: ValkeyServer) -> Iterator[Broker]:
    """An empty Valkey."""
    yield from _empty_broker(valkey_server)


@pytest.fixture(params=["valkey_server", "redis_server"])
def any_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """An empty broker: the test runs on Valkey and on Redis."""
    yield from _empty_broker(request.getfixturevalue(request.param))


def _fresh_database(server: PostgresServer, *, encoding: str = "UTF8") -> Iterator[Database]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    administrator = _connect(server.url)
    create = sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0")
    _run(administrator, create.format(sql.Identifier(name), sql.Literal(encoding)))
    connection = _connect(server.url_of(name))
    try:
        yield Database(name=name, server=server, connection=connection)
    finally:
        connection.close()
        _drop_database(administrator, name)
        administrator.close()


fresh_database = contextmanager(_fresh_database)


def _fresh_mysql_database(
    server: GivenMySQLServer | MariaDBServer | MySQLServer,
) -> Iterator[MySQLDatabase]:
    database = MySQLDatabase(name=f"test_{uuid.uuid4().hex[:12]}", server=server)
    server_itself = MySQLDatabase(name="mysql", server=server)
    server_itself.execute(f"CREATE DATABASE {database.name}")
    try:
        yield database
    finally:
        server_itself.execute(f"DROP DATABASE {database.name}")


fresh_mysql_database = contextmanager(_fresh_mysql_database)


def _drop_database(administrator: psycopg2.extensions.connection, name: str) -> None:
    wait_until(
        lambda: _drop_slots(administrator, name), what=f"the replication slots of {name} to be given up"
    )
    _run(administrator, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_slots(administrator: psycopg2.extensions.connection, name: str) -> bool:
    """Whether all are gone; one that is in use is taken from its user, and free a moment later."""
    with administrator.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = %s AND active",
            [name],
        )
        cursor.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = %s AND NOT active",
            [name],
        )
        cursor.execute("SELECT count(*) = 0 FROM pg_replication_slots WHERE database = %s", [name])
        row = cursor.fetchone()
        return bool(row and row[0])


def _connect(url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def _run(connection: psycopg2.extensions.connection, statement: sql.Composable) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _empty_broker(server: ValkeyServer) -> Iterator[Broker]:
    with redis.Redis.from_url(server.url) as client, redis.Redis.from_url(server.url_of(1)) as cache:
        client.flushall()
        yield Broker(server=server, client=client, cache=cache)
        client.flushall()
