"""What a start meets: settings of a role, a connection pooler, other listeners that start at the same moment."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg2
import pytest

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from harness.waiting import at_most, wait_until
from listener.core.source import SourceError, SourceLostError
from listener.core.source_status import Reader
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import read_postgres_status
from listener.router import BinlogRouter
from tests.support.listening import wait_for_listener
from tests.support.operators import operator_on, tasks_in
from tests.support.postgres.findings import Findings
from tests.support.postgres.items import ROWS, active, changes_of, ids, make_monitor, take, with_items
from tests.support.postgres.proxy import PostgresProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database

_MADE = (
    "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()"
    " UNION ALL SELECT pubname FROM pg_publication"
)


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings = off",
        "default_transaction_read_only = on",
        "client_min_messages = 'debug5'",
    ],
)
def test_settings_of_a_database_or_a_role_change_nothing(
    any_database: Database, broker: Broker, setting: str
) -> None:
    any_database.execute(f'ALTER DATABASE "{any_database.name}" SET {setting}')
    operator = operator_on(any_database, broker)
    assert operator.asks("check")["ready"]
    with operator.running():
        wait_for_listener(any_database, timeout=30)
        any_database.execute("INSERT INTO roles VALUES (1, 'it''s a \\ name')")
        wait_until(lambda: tasks_in(broker, "celery"), what="the task")


@pytest.mark.parametrize("pooler", ["drops", "refuses"])
def test_a_pooler_is_refused_before_anything_is_created(any_database: Database, pooler: str) -> None:
    with_items(any_database)
    with PostgresProxy(any_database.server.port, **{pooler: ["replication"]}) as proxy:
        url = proxy.url(any_database.url)
        with pytest.raises(SourceError) as raised:
            make_monitor(any_database, url=url).open(saved=None)
        assert "Name the server itself in DATABASE_URL" in str(raised.value)
        assert any_database.fetch(_MADE) == []
        assert "max_wal_senders" in Findings(url).problems


def test_several_listeners_that_start_at_once_are_one_reader_and_standbys(any_database: Database) -> None:
    with_items(any_database)
    monitors = [make_monitor(any_database) for _ in range(4)]
    reading: list[PostgresWALMonitor] = []
    failed: list[Exception] = []
    stopped = threading.Event()

    def start(monitor: PostgresWALMonitor) -> None:
        try:
            monitor.open(saved=None)
        except CDCError as error:
            failed.append(error)
        else:
            if not stopped.is_set():
                reading.append(monitor)

    threads = [threading.Thread(target=start, args=[monitor]) for monitor in monitors]
    for thread in threads:
        thread.start()
    wait_until(lambda: reading or failed, what="one to read")
    (first,) = reading
    assert active(any_database)
    any_database.execute(ROWS, 1, 1)
    assert ids(changes_of(take(first.batches(after=None), 1))) == [1]
    stopped.set()
    for monitor in monitors:
        if monitor is not first:
            monitor.stop()
    for thread in threads:
        thread.join(at_most(10))
    first.close()
    assert failed == []
    assert reading == [first]


@pytest.mark.parametrize("before", ["SELECT", "CREATE PUBLICATION cdc"])
def test_listeners_of_other_names_with_one_publication_start_at_once(
    any_database: Database, before: str
) -> None:
    """What one makes or changes while the other is about to is found at the next try, which the loop makes."""
    with_items(any_database)
    any_database.execute(before)
    failed: list[Exception] = []
    with ExitStack() as stack:

        def start(number: int) -> None:
            monitor = make_monitor(any_database, slot=f"{any_database.name}_{number}")
            stack.callback(monitor.close)
            while True:
                try:
                    return monitor.open(saved=None)
                except SourceLostError:
                    continue
                except CDCError as error:
                    failed.append(error)
                    return None

        threads = [threading.Thread(target=start, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(at_most(30))
    assert failed == []


@pytest.mark.parametrize("language", ["English", "another language", "two hosts"])
def test_a_server_shuts_down_whatever_its_language_while_the_reader_is_busy_elsewhere(language: str) -> None:
    options = quote("-c wal_sender_timeout=1500")
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer())
        url = f"{server.url}?options={options}"
        if language == "another language":
            url = stack.enter_context(PostgresProxy(server.port, translates=True)).url(url)
        elif language == "two hosts":
            other = stack.enter_context(PostgresServer())
            url = f"postgresql://postgres@/postgres?host=127.0.0.1,127.0.0.1&port={server.port},{other.port}"
            url += f"&options={options}"
        with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        monitor = _items_monitor(url)
        stack.callback(monitor.close)
        monitor.open(saved=None)
        with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(ROWS, (1, 2))
        batches = monitor.batches(after=None)
        take(batches, 2)  # nothing is acknowledged: the broker is away
        server.stop()
        assert "database system is shut down" in server.log, "it had to be killed"
        with pytest.raises(SourceLostError):
            take(batches, 1)


@pytest.fixture(scope="module", params=[PostgresServer, DebianPostgresServer])
def standby(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A hot standby of a primary that has the table."""
    with request.param() as primary, request.param() as server:
        with closing(psycopg2.connect(primary.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        server.stop()
        server.wipe()
        copy = [str(server.binaries / "pg_basebackup"), "--pgdata", str(server.data_dir), "--no-sync"]
        server._run([*copy, "--write-recovery-conf", "--checkpoint=fast", "--dbname", primary.url])
        server.start()
        yield server


def _items_monitor(url: str) -> PostgresWALMonitor:
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    return PostgresWALMonitor(url, slot="cdc", publication="cdc", routes=router.routes)


def test_a_standby_names_the_primary_and_no_locks(standby: PostgresServer) -> None:
    with pytest.raises(SourceLostError) as raised:
        _items_monitor(standby.url).open(saved=None)
    assert "Name the primary in DATABASE_URL" in str(raised.value)
    assert "pg_stat_activity" not in str(raised.value)
    assert "another replication slot" not in str(raised.value)


def test_a_publication_that_the_role_may_not_create_is_reported_in_another_language_too(
    database: Database,
) -> None:
    with_items(database)
    database.execute(f"DROP ROLE IF EXISTS reader_{database.name}")
    database.execute(f"CREATE ROLE reader_{database.name} LOGIN REPLICATION")
    try:
        with PostgresProxy(database.server.port, translates=True) as proxy:
            url = proxy.url(database.server.url_of(database.name, user=f"reader_{database.name}"))
            with pytest.raises(PermissionDeniedError) as raised:
                make_monitor(database, url=url).open(saved=None)
        assert "CREATE PUBLICATION" in str(raised.value)
    finally:
        database.execute(f"DROP ROLE reader_{database.name}")


def test_status_says_that_the_server_is_a_standby(standby: PostgresServer) -> None:
    assert read_postgres_status(standby.url, "nobodys", None).reader is Reader.NEVER_STARTED
