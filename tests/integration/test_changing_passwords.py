"""A password that expires: a command or a function gives the one that is valid now, at each connect."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pymysql
import pytest
import structlog

from cdc_tasks import db
from cdc_tasks.passwords import PasswordError, PasswordSource, split_url, with_source
from cdc_tasks.settings import SettingsError, WorkerSettings, load, worker_settings
from harness.embedded_servers import PostgresServer
from harness.waiting import wait_until
from listener.core.source import SourceError, SourceLostError
from listener.daemon.loop import Listener
from listener.mysql.client import connection as mysql
from listener.postgres.client import connection as postgres
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.mysql_servers import MariaDBServer
    from tests.conftest import Broker, Database

_OLD, _NEW = "0ld-s3cret", "n3w/s%cret@"
_calls: list[str] = []


class _Rotating:
    """A role whose password changes: the database has one, and a file the one that is given out."""

    def __init__(self, database: Any, file: Path) -> None:
        self.database, self.file, self.role = database, file, f"rotating_{database.name}"
        database.execute(f"CREATE ROLE {self.role} LOGIN SUPERUSER REPLICATION")
        self.set(_OLD)

    @property
    def url(self) -> str:
        command = quote(f"cat '{self.file}'", safe="")
        server, name = self.database.server, self.database.name
        return f"postgresql://{self.role}@127.0.0.1:{server.port}/{name}?password_command={command}"

    def set(self, password: str) -> None:
        """Change it, and end the sessions that came in with the former one."""
        self.database.execute(f"ALTER ROLE {self.role} PASSWORD %s", password)
        self.file.write_text(f"{password}\n")
        self.cut()

    def cut(self) -> None:
        self.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", self.role
        )


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer(password="owner") as server:
        yield server


@pytest.fixture
def rotating(database: Database, tmp_path: Path) -> _Rotating:
    return _Rotating(database, tmp_path / "pass word")


def test_a_listener_comes_back_with_the_new_password_and_shows_none_of_them(
    rotating: _Rotating, broker: Broker
) -> None:
    database = rotating.database
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "items", EventType.INSERT, "tests.task")
    monitor = PostgresWALMonitor(rotating.url, slot=database.name, publication="cdc", routes=router.routes)
    listener = Listener(monitor, router, RedisPublisher(celery_app(broker.url), name=database.name))
    with structlog.testing.capture_logs() as logs, running(listener, database):
        database.execute("INSERT INTO items VALUES (1)")
        wait_until(lambda: ids(broker.client, "celery") == [1], what="the first task", timeout=30)
        rotating.set(_NEW)
        database.execute("INSERT INTO items VALUES (2)")
        wait_until(lambda: ids(broker.client, "celery") == [1, 2], what="the second task", timeout=60)
        rotating.file.rename(rotating.file.with_suffix(".gone"))
        rotating.cut()
        wait_until(lambda: "ended with status 1" in str(logs), what="that the command fails", timeout=60)
        rotating.file.with_suffix(".gone").rename(rotating.file)
        database.execute("INSERT INTO items VALUES (3)")
        wait_until(lambda: ids(broker.client, "celery") == [1, 2, 3], what="the third task", timeout=60)
    assert _OLD not in str(logs)
    assert _NEW not in str(logs)


def test_a_worker_connects_with_the_password_that_is_valid_then(
    rotating: _Rotating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", split_url(rotating.url)[0])
    monkeypatch.setenv("CDC_DATABASE_PASSWORD_COMMAND", f"cat '{rotating.file}'")
    _forget_settings()
    try:
        for password in (_OLD, _NEW):
            rotating.set(password)
            with db.session() as session:
                assert session.connection().exec_driver_sql("SELECT 1").scalar() == 1
        rotating.file.unlink()
        rotating.cut()
        with pytest.raises(db.DatabaseAwayError, match="ended with status 1"), db.session() as session:
            session.connection()
        monkeypatch.setenv("CDC_DATABASE_PASSWORD_COMMAND", "/no/such/program --secret")
        _forget_settings()
        with pytest.raises(PasswordError, match="cannot be run") as caught, db.session() as session:
            session.connection()
        assert "--secret" not in str(caught.value)
    finally:
        _forget_settings()


def _forget_settings() -> None:
    if db.engine.cache_info().currsize:
        db.engine().dispose()
    db.engine.cache_clear()
    worker_settings.cache_clear()


def _mysql_password() -> str:
    return _calls[-1]


def test_on_mysql_a_function_gives_it(mariadb_server: MariaDBServer) -> None:
    url = f"mysql://rotating@127.0.0.1:{mariadb_server.port}/?password_function={__name__}:_mysql_password&ssl_disabled=true"
    owner = pymysql.connect(host="127.0.0.1", port=mariadb_server.port, user="root", autocommit=True)
    with owner, owner.cursor() as cursor:
        for password in (_OLD, _NEW):
            cursor.execute("CREATE OR REPLACE USER rotating@'%%' IDENTIFIED BY %s", [password])
            _calls.append(password)
            with mysql.connect(url) as connection:
                assert mysql.fetch_value(connection, "SELECT 1") == 1
        _calls.append("wrong")
        with pytest.raises(SourceError) as caught:
            mysql.connect(url)
        assert caught.value.code == "authentication"
        cursor.execute("DROP USER rotating@'%'")


def _raises() -> str:
    raise RuntimeError(_OLD)


def _nothing() -> str:
    return ""


@pytest.mark.parametrize(
    ("source", "words", "may_pass"),
    [
        ({"command": "false"}, "false ended with status 1", True),
        ({"command": "true"}, "returned no password", True),
        ({"command": f"'{sys.executable}' -c 'import time; time.sleep(60)'"}, "did not end within", True),
        ({"command": "/no/such/program x"}, "cannot be run: FileNotFoundError", False),
        ({"command": "echo 'x"}, "cannot be run: ValueError", False),
        ({"command": f"sh -c 'echo {_OLD}; echo {_OLD} >&2; exit 3'"}, "ended with status 3", True),
        ({"function": f"{__name__}:_raises"}, "raised RuntimeError", True),
        ({"function": f"{__name__}:_nothing"}, "returned no password", True),
        ({"function": "no.such.module:f"}, "cannot be imported", False),
        ({"function": f"{__name__}:nope"}, "cannot be imported", False),
    ],
    ids=str,
)
def test_what_fails_is_told_without_a_password_and_retried_if_it_may_pass(
    source: dict[str, str], words: str, may_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_tasks.passwords._TIMEOUT", 2.0 if "sleep" in str(source) else 60.0)
    with pytest.raises(PasswordError) as caught:
        PasswordSource(**source).password()
    assert words in str(caught.value)
    assert caught.value.hint
    assert _OLD not in str(caught.value)
    assert caught.value.may_pass == may_pass
    url = with_source("postgresql://u@127.0.0.1:1/x", **{"command": None, "function": None, **source})
    with pytest.raises(SourceLostError if may_pass else SourceError) as translated:
        postgres.connect(url)
    assert translated.value.code == "password"


def test_other_parameters_of_the_url_stay_as_they_are() -> None:
    url = "postgresql://u:x%40@h:1/d?sslmode=require&password_command=cat%20%27a%20b%27&options=-c%20x%3D1"
    plain, source = split_url(url)
    assert plain == "postgresql://u:x%40@h:1/d?sslmode=require&options=-c%20x%3D1"
    assert source == PasswordSource(command="cat 'a b'")
    assert split_url(plain) == (plain, None)
    again = with_source(url, command=None, function="a.b:c")
    assert split_url(again) == (plain, PasswordSource(function="a.b:c"))
    with pytest.raises(psycopg2.ProgrammingError):
        psycopg2.extensions.parse_dsn(url)  # so nothing that is ours may reach the driver


def test_two_sources_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    monkeypatch.setenv("CDC_SECRET_KEY", key)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
    monkeypatch.setenv("CDC_DATABASE_PASSWORD_COMMAND", "true")
    monkeypatch.setenv("CDC_DATABASE_PASSWORD_FUNCTION", "a:b")
    with pytest.raises(SettingsError, match="set either CDC_DATABASE_PASSWORD_COMMAND or") as raised:
        load(WorkerSettings)
    assert key not in str(raised.value)
