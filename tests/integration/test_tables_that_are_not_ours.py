"""A role that may not change the publication gets the SQL; tables whose UPDATE and DELETE the server refuses."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import psycopg2
from structlog.testing import capture_logs

from cdc_tasks.changes import EventType
from harness.waiting import wait_until
from listener.core.source_status import SourceStatus
from listener.daemon.status import SavedPosition, Status
from listener.postgres.client.connection import connect
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import read_postgres_status
from listener.postgres.tables.checkpoint_notes import parse_notes
from listener.router import BinlogRouter
from tests.support.listening import SAVED
from tests.support.postgres.findings import PROBLEM, UPDATE, Findings, router_to
from tests.support.postgres.publications import prepare, prepare_publication

if TYPE_CHECKING:
    from tests.conftest import Database


def test_a_listener_that_may_not_publish_says_what_to_run_and_keeps_the_gap_open_until_then(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE log_1 (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "log_*", EventType.ALL, "a.task")
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, "cdc", router.routes)
    with contextlib.suppress(psycopg2.errors.DuplicateObject):
        any_database.execute("CREATE ROLE poor LOGIN REPLICATION")
    url = any_database.server.url_of(any_database.name, user="poor")
    monitor = PostgresWALMonitor(url, slot=any_database.name, publication="cdc", routes=router.routes)
    with contextlib.closing(monitor), capture_logs() as logs:
        monitor.open(saved=None)
        batches = monitor.batches(None)
        noted = [next(batches).notes]
        any_database.execute("CREATE TABLE log_2 (id int PRIMARY KEY); INSERT INTO log_2 VALUES (1)")

        def read(what: str) -> list[str]:
            noted.append(next(batches).notes or noted[-1])
            return [each["hint"] for each in logs if each["event"] == what]

        (hint,) = wait_until(lambda: read("tables_unseen"), what="the SQL for the owner")
        wait_until(lambda: read("gap"), what="the gap")
        (gap,) = parse_notes(noted[-1]).gaps
        assert (gap.table, gap.end) == ("public.log_2", None)
        status = _status(
            read_postgres_status(url, any_database.name, None, publication="cdc", routes=router.routes)
        )
        assert (status.is_healthy, status.source.unseen) == (False, ("public.log_2",))
        any_database.execute(hint.partition("\n")[2])
        wait_until(lambda: read("gap") and parse_notes(noted[-1]).gaps[0].end, what="the end of the gap")
        any_database.execute("INSERT INTO log_2 VALUES (2); CREATE TABLE log_3 (id int PRIMARY KEY)")
        came = wait_until(lambda: next(batches).changes, what="the row")
        wait_until(lambda: len(read("tables_unseen")) > 1, what="the SQL for the next table")
        wait_until(lambda: read("gap") and len(parse_notes(noted[-1]).gaps) > 1, what="its gap")
        any_database.execute(read("tables_unseen")[-1].partition("\n")[2])
        wait_until(lambda: read("gap") and len(parse_notes(noted[-1]).gaps) == 1, what="no gap: it is empty")
    assert [change.row["id"] for change in came] == [2]
    (closed,) = parse_notes(noted[-1]).gaps
    assert closed.start == gap.start


def test_statements_that_a_list_of_columns_makes_fail_are_a_problem(debian_database: Database) -> None:
    debian_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1, 1, 1)"
    )
    router = router_to(("t", UPDATE, "a"))
    with contextlib.closing(connect(debian_database.url)) as connection:
        prepare(connection, router)
    debian_database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    with contextlib.suppress(psycopg2.errors.InvalidColumnReference):
        debian_database.execute("UPDATE t SET a = 2")
        raise AssertionError("the server took it")
    message = "UPDATE of public.t are refused now: the publication ours lists columns"
    finding = Findings(debian_database.url, router).about(message)
    assert finding.state is PROBLEM
    debian_database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", debian_database.name)
    debian_database.execute(finding.hint)
    debian_database.execute("UPDATE t SET a = 2")
    assert Findings(debian_database.url, router).problems == []


def test_the_sql_for_full_keeps_updates_going_with_lists_of_columns(debian_database: Database) -> None:
    """As docs/operating.md gives it."""
    debian_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1, 1, 1)"
    )
    with contextlib.closing(connect(debian_database.url)) as connection:
        prepare(connection, router_to(("t", UPDATE, "a")))
    debian_database.execute(
        "BEGIN; ALTER PUBLICATION ours DROP TABLE ONLY t; ALTER PUBLICATION ours ADD TABLE ONLY t;"
        "ALTER TABLE t REPLICA IDENTITY FULL; COMMIT;"
    )
    debian_database.execute("UPDATE t SET a = 2")


def test_status_shows_what_is_refused_while_the_listener_runs(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int)")
    router = router_to(("t", EventType.ALL, "a"))
    monitor = PostgresWALMonitor(database.url, slot=database.name, publication="cdc", routes=router.routes)
    with contextlib.closing(monitor):
        monitor.open(saved=None)
        database.execute("CREATE PUBLICATION another FOR TABLE t (id); ALTER TABLE t REPLICA IDENTITY FULL")
        source = read_postgres_status(
            database.url, database.name, None, publication="cdc", routes=router.routes
        )
    (problem,) = source.problems
    assert "UPDATE and DELETE of public.t are refused now: the publication another lists columns" in problem
    assert not _status(source).is_healthy


def test_a_standby_takes_what_is_saved_when_its_wait_is_over(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    asked = threading.Event()

    def again() -> None:
        asked.set()

    routes = router_to(("t", UPDATE)).routes
    first, second = (
        PostgresWALMonitor(database.url, slot=database.name, publication="cdc", routes=routes)
        for _ in range(2)
    )
    with contextlib.closing(first), contextlib.closing(second):
        first.open(saved=None, again=again)
        assert not asked.is_set()  # it did not have to wait
        standby = threading.Thread(target=second.open, kwargs={"saved": SAVED, "again": again})
        with capture_logs() as logs:
            standby.start()
            wait_until(lambda: [each for each in logs if each["event"] == "standby"], what="a standby")
            assert not asked.is_set()
            first.close()
            standby.join(30)
        assert asked.is_set()


def _status(source: SourceStatus) -> Status:
    return Status(name="ours", source=source, saved=SavedPosition(None, None, 0), lag_alarm=10**12)
