"""What `python -m listener check` finds in PostgreSQL, before `run` does: each problem made on a real server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from harness.waiting import wait_until
from listener.postgres.client.connection import connect, connect_replication, execute, fetch
from listener.postgres.client.slot import create_slot
from tests.support.listening import SAVED
from tests.support.postgres.findings import INSERT, UPDATE, WARNING, Findings, router_to
from tests.support.postgres.publications import prepare_publication

if TYPE_CHECKING:
    from tests.conftest import Database

_EACH_VERSION = pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])


def test_a_server_that_is_ready_has_no_problem_before_and_after_the_first_start(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    router = router_to(("tickets", [INSERT, UPDATE], "title"))
    before = Findings(any_database.url, router, name=any_database.name)
    assert before.problems == []
    assert before[f"slot {any_database.name}"].found == "will be created at the first start"
    assert before[f"publication {any_database.name}"].found == "will be created"
    assert before["table public.tickets"].found == "INSERT, UPDATE of title"
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, any_database.name, router.routes)
        create_slot(connection, any_database.name, "pgoutput")
    after = Findings(any_database.url, router, name=any_database.name)
    assert after.problems == []
    assert "no listener reads from it" in after[f"slot {any_database.name}"].found
    assert after[f"publication {any_database.name}"].found == "has what the routes need: 1 table"


@_EACH_VERSION
def test_several_problems_of_a_server_are_found_in_one_go(server_class: type[PostgresServer]) -> None:
    settings = {"wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "0"}
    with server_class(settings=settings) as server:
        with contextlib.closing(connect(server.url)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE public.journal (x int); CREATE ROLE poor LOGIN")
        url = server.url_of("postgres", user="poor")
        router = router_to(("journal", UPDATE), ("absent", INSERT))
        found = Findings(url, router)
        assert found.problems == [
            "wal_level",
            "REPLICATION",
            "max_replication_slots",
            "max_wal_senders",
            "route to tasks.absent",
            "table public.journal",
        ]
        assert found["wal_level"].hint.startswith("ALTER SYSTEM SET wal_level = 'logical';")
        assert found["REPLICATION"].hint.startswith("ALTER ROLE poor REPLICATION;")
        assert "ALTER SYSTEM SET max_replication_slots" in found["max_replication_slots"].hint
        assert found["table public.journal"].hint.endswith(
            "ALTER TABLE public.journal REPLICA IDENTITY FULL;"
        )
        assert "ALTER SYSTEM SET max_wal_senders" in Findings(server.url)["max_wal_senders"].hint


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
            assert "pg_drop_replication_slot" in found["max_replication_slots"].hint
            assert "pg_stat_replication" in found["max_wal_senders"].hint
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
        assert "ALTER ROLE postgres PASSWORD" in wrong["connection"].hint
        server.stop()
        away = Findings(server.url)
    assert away.problems == ["connection"]
    assert "Is PostgreSQL running there?" in away["connection"].hint
    assert "secret" not in repr(wrong.all + away.all)


def test_wal2json_is_found_where_it_is_installed_and_missed_where_not(
    database: Database, debian_database: Database
) -> None:
    with contextlib.closing(connect(database.url)) as connection:
        guarded = fetch(connection, "SELECT 1 FROM pg_settings WHERE name = 'output_plugin_libraries'")
    missing = Findings(database.url, plugin="wal2json")
    assert missing.problems == ["plugin wal2json"]
    if guarded:
        assert missing["plugin wal2json"].hint.startswith("ALTER SYSTEM SET output_plugin_libraries")
        with PostgresServer() as server:
            with contextlib.closing(connect(server.url)) as connection:
                for statement in missing["plugin wal2json"].hint.split(";"):
                    execute(connection, statement or "SELECT")
            missing = _wait_until_unguarded(server.url)
    assert "apt install postgresql-VERSION-wal2json" in missing["plugin wal2json"].hint
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
        return None if "output_plugin_libraries" in findings["plugin wal2json"].hint else findings

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
        assert "is no longer in its log" in lost["slot ours"].found
        assert "--accept-gap" in lost["slot ours"].hint


def test_a_slot_of_wal2json_is_a_problem_for_pgoutput(debian_database: Database) -> None:
    with contextlib.closing(connect(debian_database.url)) as connection:
        prepare_publication(connection, debian_database.name, ())
        create_slot(connection, debian_database.name, "wal2json")
    found = Findings(debian_database.url, name=debian_database.name)
    assert found.problems == [f"slot {debian_database.name}"]
    assert "pg_drop_replication_slot" in found[f"slot {debian_database.name}"].hint


def test_a_slot_that_is_gone_although_something_was_published_is_a_problem(any_database: Database) -> None:
    found = Findings(any_database.url, saved=SAVED)
    assert found.problems == ["slot ours"]
    assert "--accept-gap" in found["slot ours"].hint


def test_a_failover_slot_needs_a_server_that_knows_them(any_database: Database) -> None:
    knows_them = any_database.connection.info.server_version >= 17_00_00
    found = Findings(any_database.url, failover=True)
    assert found.problems == ([] if knows_them else ["CDC_SLOT_FAILOVER"])


def test_an_idle_timeout_that_would_cost_the_slot_is_a_warning() -> None:
    with PostgresServer(settings={"idle_replication_slot_timeout": "1d"}) as server:
        found = Findings(server.url)["idle_replication_slot_timeout"]
    assert found.state is WARNING
    assert "ALTER SYSTEM SET idle_replication_slot_timeout = 0" in found.hint


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
    assert "target_session_attrs=read-write" in found["primary"].hint
