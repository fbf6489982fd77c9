"""What `python -m listener check` finds in PostgreSQL, before `run` does: each problem made on a real server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from cdc_tasks.changes import EventType
from demo.servers import PostgresServer
from listener.findings import Finding, State
from listener.postgres.check import Wanted, check_postgres
from listener.postgres.connection import connect, connect_replication, execute, fetch
from listener.postgres.preparation import prepare_publication
from listener.postgres.slot import create_slot
from listener.router import BinlogRouter, changed
from tests.servers import DebianPostgresServer
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database

OK, WARNING, PROBLEM = State.OK, State.WARNING, State.PROBLEM
INSERT, UPDATE, DELETE = EventType.INSERT, EventType.UPDATE, EventType.DELETE

_EACH_VERSION = pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])


class Findings:
    """What was found, by what was looked at."""

    def __init__(
        self, url: str, router: BinlogRouter | None = None, *, name: str = "ours", **wanted: Any
    ) -> None:
        defaults = {"plugin": "pgoutput", "failover": False, "lag_alarm": 10**9, "resumes": False}
        routes = (router or BinlogRouter()).routes
        self.all = list(
            check_postgres(url, Wanted(slot=name, publication=name, routes=routes, **{**defaults, **wanted}))
        )

    @property
    def problems(self) -> list[str]:
        return [each.what for each in self.all if each.state is PROBLEM]

    def __getitem__(self, what: str) -> Finding:
        (found,) = [each for each in self.all if each.what == what]
        return found

    def about(self, words: str) -> Finding:
        """Return the one that says this."""
        (found,) = [each for each in self.all if words in each.found]
        return found


def _router(*registrations: tuple[Any, ...], **options: Any) -> BinlogRouter:
    router = BinlogRouter()
    for table, events, *columns in registrations:
        router.register("public", table, events, f"tasks.{table}", columns=columns or None, **options)
    return router


def test_a_server_that_is_ready_has_no_problem_before_and_after_the_first_start(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    router = _router(("tickets", [INSERT, UPDATE], "title"))
    before = Findings(any_database.url, router, name=any_database.name)
    assert before.problems == []
    assert before[f"slot {any_database.name}"].found == "will be made at the first start"
    assert before[f"publication {any_database.name}"].found == "will be made"
    assert before["table public.tickets"].found == "INSERT, UPDATE of title"
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, any_database.name, router.routes)
        create_slot(connection, any_database.name, "pgoutput")
    after = Findings(any_database.url, router, name=any_database.name)
    assert after.problems == []
    assert "nobody reads from it" in after[f"slot {any_database.name}"].found
    assert after[f"publication {any_database.name}"].found == "has what the routes need: 1 tables"


@_EACH_VERSION
def test_several_problems_of_a_server_are_found_in_one_go(server_class: type[PostgresServer]) -> None:
    settings = {"wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "0"}
    with server_class(settings=settings) as server:
        with contextlib.closing(connect(server.url)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE public.journal (x int); CREATE ROLE poor LOGIN")
        url = server.url_of("postgres", user="poor")
        router = _router(("journal", UPDATE), ("absent", INSERT))
        found = Findings(url, router)
        assert found.problems == [
            "wal_level",
            "REPLICATION",
            "max_replication_slots",
            "max_wal_senders",
            "route to tasks.absent",
            "table public.journal",
        ]
        assert found["wal_level"].cure.startswith("ALTER SYSTEM SET wal_level = 'logical';")
        assert found["REPLICATION"].cure.startswith("ALTER ROLE poor REPLICATION;")
        assert "ALTER SYSTEM SET max_replication_slots" in found["max_replication_slots"].cure
        assert found["table public.journal"].cure.endswith(
            "ALTER TABLE public.journal REPLICA IDENTITY FULL;"
        )
        assert "ALTER SYSTEM SET max_wal_senders" in Findings(server.url)["max_wal_senders"].cure


@_EACH_VERSION
def test_a_server_with_all_slots_and_senders_taken_says_who_has_them(
    server_class: type[PostgresServer],
) -> None:
    with server_class(settings={"max_wal_senders": "1", "max_replication_slots": "1"}) as server:
        with contextlib.closing(connect(server.url)) as connection:
            create_slot(connection, "somebodys", "pgoutput")
        with contextlib.closing(connect_replication(server.url)):
            found = Findings(server.url)
            assert found.problems == ["max_replication_slots", "max_wal_senders"]
            assert found["max_replication_slots"].found == "1 of 1 in use"
            assert "pg_drop_replication_slot" in found["max_replication_slots"].cure
            assert "pg_stat_replication" in found["max_wal_senders"].cure
        assert Findings(server.url, name="somebodys").problems == [
            "slot somebodys"
        ]  # its publication is missing


@_EACH_VERSION
def test_a_wrong_password_and_a_server_that_is_away_are_told_without_the_password(
    server_class: type[PostgresServer],
) -> None:
    with server_class(password="right-secret") as server:
        wrong = Findings(server.url_of("postgres", password="wrong-secret"))
        assert wrong.problems == ["connection"]
        assert "ALTER ROLE postgres PASSWORD" in wrong["connection"].cure
        server.stop()
        away = Findings(server.url)
    assert away.problems == ["connection"]
    assert "Is PostgreSQL running there?" in away["connection"].cure
    assert "secret" not in repr(wrong.all + away.all)


@pytest.mark.parametrize(
    ("table", "told", "cure"),
    [
        ("tickts", "there is no table public.tickts. Did you mean public.tickets?", "Correct the route"),
        ("tickets_view", "is a view, and has no log", "Name the tables"),
        ("scratch", "is unlogged", "ALTER TABLE public.scratch SET LOGGED;"),
    ],
)
def test_a_route_to_what_is_no_table_with_a_log_is_a_problem(
    database: Database, table: str, told: str, cure: str
) -> None:
    database.execute(
        "CREATE TABLE tickets (id int PRIMARY KEY); CREATE VIEW tickets_view AS TABLE tickets;"
        "CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)"
    )
    found = Findings(database.url, _router((table, INSERT))).about(told)
    assert found.state is PROBLEM
    assert cure in found.cure


def test_a_column_that_is_not_there_is_a_problem_and_in_a_glob_a_warning(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text)")
    router = _router(("tickets", INSERT, "id", "stats"), ("tick*", INSERT, "title"))
    router.register("public", "tickets", UPDATE, "tasks.changed", when=changed("state"))
    found = Findings(any_database.url, router)
    assert found.about("no column stats. Did you mean status?").state is PROBLEM
    assert found.about("no column state. Did you mean status?").state is PROBLEM
    assert found.about("no column title").state is WARNING


def test_a_glob_without_a_table_yet_is_a_warning(database: Database) -> None:
    assert Findings(database.url, _router(("later_*", INSERT))).about("no table matches").state is WARNING


def test_routes_that_need_old_values_get_the_sql_that_puts_them_in_the_log(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text, title text)")
    router = _router(("tickets", UPDATE, "id"), when=changed("status"))
    router.register("public", "tickets", DELETE, "tasks.deleted", columns=["title"])
    router.register("public", "tickets", UPDATE, "tasks.renumbered", when=changed("id"))
    found = Findings(any_database.url, router)
    compared = found.about("whether status changed is not in the log")
    deleted = found.about("a DELETE says nothing of title, only id")
    assert {compared.state, deleted.state} == {WARNING}
    assert compared.cure == deleted.cure == "ALTER TABLE public.tickets REPLICA IDENTITY FULL;"
    any_database.execute(compared.cure)
    assert [each.state for each in Findings(any_database.url, router).all if each.state is not OK] == []


def test_the_sql_for_old_values_keeps_the_application_going_while_columns_are_listed(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text, title text)")
    any_database.execute("INSERT INTO tickets VALUES (1)")
    router = _router(("tickets", UPDATE, "id"), when=changed("status"))
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, "ours", router.routes)
        cure = Findings(any_database.url, router).about("whether status changed").cure
        any_database.execute(cure)
        any_database.execute("UPDATE tickets SET status = 'new'")
        assert Findings(any_database.url, router)["publication ours"].found.startswith(
            "has what the routes need"
        )
        prepare_publication(connection, "ours", router.routes)
    any_database.execute("UPDATE tickets SET status = 'old'; DELETE FROM tickets")


def test_a_route_to_a_partition_is_told_under_which_name_its_changes_come(any_database: Database) -> None:
    any_database.execute(
        """CREATE TABLE events (day int) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10)"""
    )
    found = Findings(any_database.url, _router(("events_1", INSERT), ("events", INSERT)))
    assert found.about("public.events_1 is a partition of public.events").state is WARNING
    any_database.execute("ALTER TABLE events_1 REPLICA IDENTITY FULL")
    updating = Findings(any_database.url, _router(("events", UPDATE)))
    assert updating.about("will fail in a partition that is added later").state is WARNING


def test_a_role_that_may_not_publish_gets_the_sql_for_the_owner(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    with contextlib.suppress(psycopg2.errors.DuplicateObject):
        any_database.execute("CREATE ROLE poor LOGIN REPLICATION")
    url = any_database.server.url_of(any_database.name, user="poor")
    router = _router(("tickets", UPDATE))
    found = Findings(url, router)
    assert found.problems == ["publication ours"]
    assert found["publication ours"].found == "is not there, and poor may not CREATE in this database"
    any_database.execute(f'GRANT CREATE ON DATABASE "{any_database.name}" TO poor')
    found = Findings(url, router)
    assert "poor does not own public.tickets" in found["publication ours"].found
    any_database.execute(found["publication ours"].cure.partition("\n")[2])
    assert Findings(url, router).problems == []
    any_database.execute("CREATE TABLE users (id int PRIMARY KEY)")
    found = Findings(url, _router(("tickets", UPDATE), ("users", UPDATE)))
    assert "poor does not own it" in found["publication ours"].found
    any_database.execute(found["publication ours"].cure.partition("\n")[2])
    assert Findings(url, _router(("tickets", UPDATE), ("users", UPDATE))).problems == []


def test_wal2json_is_found_where_it_is_installed_and_missed_where_not(
    database: Database, debian_database: Database
) -> None:
    with contextlib.closing(connect(database.url)) as connection:
        guarded = fetch(connection, "SELECT 1 FROM pg_settings WHERE name = 'output_plugin_libraries'")
    missing = Findings(database.url, plugin="wal2json")
    assert missing.problems == ["plugin wal2json"]
    if guarded:
        assert missing["plugin wal2json"].cure.startswith("ALTER SYSTEM SET output_plugin_libraries")
        with PostgresServer() as server:
            with contextlib.closing(connect(server.url)) as connection:
                for statement in missing["plugin wal2json"].cure.split(";"):
                    execute(connection, statement or "SELECT")
            missing = _wait_until_unguarded(server.url)
    assert "apt install postgresql-VERSION-wal2json" in missing["plugin wal2json"].cure
    there = Findings(debian_database.url, plugin="wal2json")
    assert there["plugin wal2json"].found == "installed"
    assert there.problems == []
    debian_database.execute("CREATE TABLE t (x int)")
    with contextlib.closing(debian_database.connect()) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")  # the trial slot would wait for this
        assert Findings(debian_database.url, plugin="wal2json")["plugin wal2json"].found == "installed"
    slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    assert debian_database.fetch(slots) == []


def _wait_until_unguarded(url: str) -> Findings:
    def found() -> Findings | None:
        findings = Findings(url, plugin="wal2json")
        return None if "output_plugin_libraries" in findings["plugin wal2json"].cure else findings

    unguarded = wait_until(found, what="the server to read its settings again")
    assert unguarded is not None
    return unguarded


def test_a_first_start_that_would_wait_says_for_whom(any_database: Database) -> None:
    any_database.execute("CREATE TABLE t (x int)")
    with contextlib.closing(any_database.connect()) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        assert f"(pid {other.info.backend_pid})" in Findings(any_database.url)["slot ours"].found


@_EACH_VERSION
def test_a_lost_slot_is_a_problem_and_a_growing_one_a_warning(server_class: type[PostgresServer]) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with server_class(settings=settings) as server, contextlib.closing(connect(server.url)) as connection:
        prepare_publication(connection, "ours", ())
        create_slot(connection, "ours", "pgoutput")
        execute(connection, "CREATE TABLE public.filler AS SELECT generate_series(1, 1000)")
        growing = Findings(server.url, lag_alarm=100)
        assert growing.problems == []
        assert growing.about("more than CDC_LAG_ALARM").state is WARNING
        with connection.cursor() as cursor:
            for _ in range(4):
                cursor.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')")
            cursor.execute("CHECKPOINT")
        lost = Findings(server.url)
        assert lost.problems == ["slot ours"]
        assert "is gone from its log" in lost["slot ours"].found
        assert "--accept-gap" in lost["slot ours"].cure


def test_a_slot_of_another_plugin_is_a_problem(debian_database: Database) -> None:
    with contextlib.closing(connect(debian_database.url)) as connection:
        prepare_publication(connection, debian_database.name, ())
        create_slot(connection, debian_database.name, "wal2json")
    found = Findings(debian_database.url, name=debian_database.name)
    assert found.problems == [f"slot {debian_database.name}"]
    assert "pg_drop_replication_slot" in found[f"slot {debian_database.name}"].cure


def test_a_slot_that_is_gone_although_something_was_published_is_a_problem(any_database: Database) -> None:
    found = Findings(any_database.url, resumes=True)
    assert found.problems == ["slot ours"]
    assert "--accept-gap" in found["slot ours"].cure


def test_a_failover_slot_needs_a_server_that_knows_them(
    database: Database, debian_database: Database
) -> None:
    assert Findings(database.url, failover=True).problems == []
    assert Findings(debian_database.url, failover=True).problems == ["CDC_SLOT_FAILOVER"]


def test_an_idle_timeout_that_would_cost_the_slot_is_a_warning() -> None:
    with PostgresServer(settings={"idle_replication_slot_timeout": "1d"}) as server:
        found = Findings(server.url)["idle_replication_slot_timeout"]
    assert found.state is WARNING
    assert "ALTER SYSTEM SET idle_replication_slot_timeout = 0" in found.cure


def test_a_standby_is_told_apart_from_a_primary() -> None:
    with PostgresServer() as primary, PostgresServer() as standby:
        standby.stop()
        standby.wipe()
        standby._run(
            [
                str(standby.binaries / "pg_basebackup"),
                "--pgdata",
                str(standby.data_dir),
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "--dbname",
                primary.url,
            ]
        )
        standby.start()
        found = Findings(standby.url)
    assert "primary" in found.problems
    assert "target_session_attrs=read-write" in found["primary"].cure
