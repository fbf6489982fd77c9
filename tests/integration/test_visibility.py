"""A task starts only once sessions see its change: a server sends a commit to a reader of its log before that."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from harness.waiting import wait_until
from listener.core import visibility
from listener.daemon.loop import Listener
from listener.daemon.status import read_saved_position
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.commit_wait_note import CommitWaitNote
from listener.publish.redis.connection import RedisConnection
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.held_commits import held_commits
from tests.support.listening import running
from tests.support.mysql.source import MySQLDatabase
from tests.support.postgres.source import PostgresSource
from tests.support.publishing import celery_app, ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.core.source import Monitor
    from listener.core.visibility import CommitWait
    from listener.postgres.plugins import PluginName
    from tests.conftest import Broker, Database

_SERVERS = (
    ("database", "pgoutput"),
    ("debian_database", "wal2json"),
    ("mariadb_database", ""),
    ("mysql_database", ""),
)
_LOOKS = "query LIKE '%pg_current_snapshot%' AND pid <> pg_backend_pid() AND datname = current_database()"


def _monitor(database: Database | MySQLDatabase, plugin: Any, router: BinlogRouter) -> Monitor:
    if isinstance(database, MySQLDatabase):
        return BinlogMonitor(database.url, name=database.name, routes=router.routes)
    return PostgresWALMonitor(
        database.url, slot=database.name, publication=database.name, routes=router.routes, plugin=plugin
    )


def _commit_wait(broker: Broker, name: str) -> CommitWait | None:
    """Return what `status` would tell."""
    return read_saved_position(RedisConnection.of_broker(celery_app(broker.url)), name).commit_wait


@pytest.fixture(params=_SERVERS, ids=lambda server: server[0])
def server(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A database with a table `t`, and the plugin."""
    name, plugin = request.param
    database = request.getfixturevalue(name)
    database.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    return database, plugin


def test_a_task_comes_when_its_row_can_be_read_and_not_before(
    server: tuple[Any, str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, plugin = server
    monkeypatch.setattr(visibility, "_TOLD_AFTER", 0.3)
    router = BinlogRouter()
    router.register("public" if plugin else database.name, "t", EventType.ALL, "a.task", queue="shop")

    @contextmanager
    def listening() -> Iterator[None]:
        redis = RedisConnection.of_broker(celery_app(broker.url))
        publisher = RedisPublisher(celery_app(broker.url), name=database.name)
        listener = Listener(
            _monitor(database, plugin, router),
            router,
            publisher,
            commit_wait_note=CommitWaitNote(redis, database.name),
        )
        with running(listener, database):
            yield
        redis.close()

    def rows() -> list[int]:
        return [number for (number,) in database.fetch("SELECT id FROM t ORDER BY id")]

    def arrived(*numbers: int) -> None:
        wait_until(lambda: ids(broker.client, "shop") == [*numbers], what=f"{numbers}", timeout=30)

    def waits() -> CommitWait:
        return wait_until(lambda: _commit_wait(broker, database.name), what="it to wait", timeout=30)

    with capture_logs() as logs, ExitStack() as held:
        with listening():
            database.execute("INSERT INTO t VALUES (1)")
            arrived(1)
            with held_commits(database, "INSERT INTO t VALUES (2)") as inserting:
                since = waits().since
                wait_until(lambda: _has(logs, "commit_not_visible"), what="a line of the log")
                if plugin:  # somebody ends the session that looks: it opens another one
                    assert database.fetch(
                        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_LOOKS}"
                    )
                    wait_until(lambda: database.fetch(f"SELECT 1 FROM pg_stat_activity WHERE {_LOOKS}"))
                assert waits().since == since
                assert (rows(), ids(broker.client, "shop"), inserting.done()) == ([1], [1], False)
            arrived(1, 2)
            wait_until(lambda: _commit_wait(broker, database.name) is None, what="the end of the note")
            assert _has(logs, "commit_visible")
            held.enter_context(held_commits(database, "INSERT INTO t VALUES (3)"))
            waits()
        broker.client.delete(f"cdc:{database.name}:not_visible")
        with listening():
            waits()
            assert (rows(), ids(broker.client, "shop")) == ([1, 2], [1, 2])
            held.close()
            arrived(1, 2, 3)


@pytest.mark.parametrize(("name", "plugin"), _SERVERS[:2])
def test_what_a_transaction_has_made_is_known_when_its_rows_are_read(
    name: str, plugin: PluginName, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visibility, "_TOLD_AFTER", 0.0)
    database: Database = request.getfixturevalue(name)
    made = "CREATE TYPE mood AS ENUM ('ok'); ALTER TABLE t ADD moods mood[]; INSERT INTO t VALUES (1, '{ok}')"
    hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with PostgresSource(database, plugin) as source, capture_logs() as logs:
        source.execute("CREATE TABLE t (id integer PRIMARY KEY)")
        source.watch("t")
        with held_commits(database, made):
            wait_until(lambda: database.fetch(hanging) == [(2,)], what="the commit to hang")
            source.read_until(lambda: _has(logs, "commit_not_visible"), what="a line of the log")
        (change,) = source.changes(1)
    assert change.row == {"id": 1, "moods": ["ok"]}


def _has(logs: list[Any], event: str) -> bool:
    return any(line["event"] == event for line in logs)
