"""What `python -m listener check` says of routes, against the tables that PostgreSQL has."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
import pytest

from listener.postgres.client.connection import connect
from listener.router import became, changed
from tests.support.postgres.findings import DELETE, INSERT, OK, PROBLEM, UPDATE, WARNING, Findings, router_to
from tests.support.postgres.publications import prepare_publication

if TYPE_CHECKING:
    from cdc_tasks.changes import Change
    from tests.conftest import Database


@pytest.mark.parametrize(
    ("table", "told", "hint"),
    [
        ("tickts", "there is no table public.tickts. Did you mean public.tickets?", "Correct the route"),
        ("tickets_view", "is a view, and is not logged", "Name its base tables"),
        ("scratch", "is unlogged", "ALTER TABLE public.scratch SET LOGGED;"),
    ],
)
def test_a_route_to_what_is_no_table_with_a_log_is_a_problem(
    database: Database, table: str, told: str, hint: str
) -> None:
    database.execute(
        "CREATE TABLE tickets (id int PRIMARY KEY); CREATE VIEW tickets_view AS TABLE tickets;"
        "CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)"
    )
    found = Findings(database.url, router_to((table, INSERT))).about(told)
    assert found.state is PROBLEM
    assert hint in found.hint


def test_a_column_that_is_not_there_is_a_problem_and_in_a_glob_a_warning(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text)")
    router = router_to(("tickets", INSERT, "id", "stats"), ("tick*", INSERT, "title"))
    router.register("public", "tickets", UPDATE, "tasks.changed", when=changed("state"))
    router.register("public", "tickets", UPDATE, "tasks.keyed", columns=["id"], key="titel")
    found = Findings(any_database.url, router)
    assert found.about("no column stats. Did you mean status?").state is PROBLEM
    assert found.about("no column state. Did you mean status?").state is PROBLEM
    assert found.about("no column title").state is WARNING
    assert found.about("no column titel").state is PROBLEM


def test_a_glob_without_a_table_yet_is_a_warning(database: Database) -> None:
    assert Findings(database.url, router_to(("later_*", INSERT))).about("no table matches").state is WARNING


def test_routes_that_need_old_values_get_the_sql_that_puts_them_in_the_log(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text, title text)")
    router = router_to(("tickets", UPDATE, "id"), when=changed("status"))
    router.register("public", "tickets", DELETE, "tasks.deleted", columns=["title"])
    router.register("public", "tickets", UPDATE, "tasks.renumbered", when=changed("id"))
    found = Findings(any_database.url, router)
    compared = found.about("whether status changed is not in the log")
    deleted = found.about("a DELETE does not have title, only id")
    assert {compared.state, deleted.state} == {WARNING}
    assert compared.hint == deleted.hint == "ALTER TABLE public.tickets REPLICA IDENTITY FULL;"
    any_database.execute(compared.hint)
    assert [each.state for each in Findings(any_database.url, router).all if each.state is not OK] == []


def test_it_is_said_when_became_fires_without_old_values(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text)")
    router = router_to(("tickets", [INSERT, UPDATE], "id"), when=became("status", "closed"))
    router.register("public", "tickets", INSERT, "tasks.new", columns=["id"], when=became("status", "new"))
    found = Findings(any_database.url, router)
    warnings = [each.found for each in found.all if each.code == "old_values"]
    told = (
        "became('status', 'closed') fires at every UPDATE of a row whose status is 'closed' then, new or not"
    )
    assert warnings == [f"public.tickets: whether status changed is not in the log: {told}"]
    any_database.execute("ALTER TABLE tickets REPLICA IDENTITY FULL")
    assert [each for each in Findings(any_database.url, router).all if each.state is not OK] == []


def test_what_a_delete_and_an_old_row_lack_of_the_listed_columns_is_told(any_database: Database) -> None:
    any_database.execute("CREATE TABLE grants (id int PRIMARY KEY, user_id int, note text)")
    router = router_to()
    columns = ["id", "user_id"]
    router.register("public", "grants", [INSERT, DELETE], "tasks.granted", columns=columns, args=lambda _: [])
    router.register("public", "grants", [UPDATE], "tasks.moved", columns=columns, args=lambda _: [])
    router.register("public", "grants", [INSERT, DELETE], "tasks.counted", columns=["id"], args=lambda _: [])
    router.register("public", "grants", [INSERT, DELETE], "tasks.keyed", columns=["id"], key=["id", "note"])
    router.register("public", "grants", [INSERT, UPDATE], "tasks.fine", columns=["id"], key="note")
    found = Findings(any_database.url, router)
    deleted = found.about("a DELETE does not have user_id, only id")
    updated = found.about("an UPDATE has user_id in `after` alone")
    assert (deleted.what, deleted.state) == ("route to tasks.granted", WARNING)
    assert (updated.what, updated.state) == ("route to tasks.moved", WARNING)
    keyed = found.about("a DELETE does not have note of key=, only id")
    assert (keyed.what, keyed.state) == ("route to tasks.keyed", WARNING)
    assert [each for each in found.all if each.what == "route to tasks.fine"] == []
    any_database.execute(deleted.hint)
    assert [each for each in Findings(any_database.url, router).all if each.state is not OK] == []


def test_a_condition_on_json_or_an_array_can_be_checked(any_database: Database) -> None:
    any_database.execute("CREATE TABLE papers (id int PRIMARY KEY, tags text[], data jsonb)")
    router = router_to(("papers", UPDATE, "id"), when=became("tags", ["urgent"]))
    router.register("public", "papers", UPDATE, "tasks.data", columns=["id"], when=became("data", {"a": 1}))
    router.register("public", "papers", UPDATE, "tasks.own", when=_Unhashable())
    assert Findings(any_database.url, router).problems == []
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, "ours", router.routes)


@dataclass
class _Unhashable:
    """A condition of a user's own, which has no hash, as dataclasses have none."""

    called: int = 0

    def __call__(self, change: Change) -> bool:
        return True


def test_the_sql_for_old_values_keeps_the_application_going_while_columns_are_listed(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, status text, title text)")
    any_database.execute("INSERT INTO tickets VALUES (1)")
    router = router_to(("tickets", UPDATE, "id"), when=changed("status"))
    with contextlib.closing(connect(any_database.url)) as connection:
        prepare_publication(connection, "ours", router.routes, column_lists=True)
        hint = Findings(any_database.url, router).about("whether status changed").hint
        any_database.execute(hint)
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
    found = Findings(any_database.url, router_to(("events_1", INSERT), ("events", INSERT)))
    assert found.about("public.events_1 is a partition of public.events").state is WARNING
    any_database.execute("ALTER TABLE events_1 REPLICA IDENTITY FULL")
    updating = Findings(any_database.url, router_to(("events", UPDATE)))
    assert updating.about("will fail in a partition that is added later").state is WARNING


def test_a_role_that_may_not_publish_gets_the_sql_for_the_owner(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    with contextlib.suppress(psycopg2.errors.DuplicateObject):
        any_database.execute("CREATE ROLE poor LOGIN REPLICATION")
    url = any_database.server.url_of(any_database.name, user="poor")
    router = router_to(("tickets", UPDATE))
    found = Findings(url, router)
    assert found.problems == ["publication ours"]
    assert found["publication ours"].found == "does not exist, and poor may not CREATE in this database"
    any_database.execute(f'GRANT CREATE ON DATABASE "{any_database.name}" TO poor')
    found = Findings(url, router)
    assert "poor does not own public.tickets" in found["publication ours"].found
    any_database.execute(found["publication ours"].hint.partition("\n")[2])
    assert Findings(url, router).problems == []
    any_database.execute("CREATE TABLE users (id int PRIMARY KEY)")
    found = Findings(url, router_to(("tickets", UPDATE), ("users", UPDATE)))
    assert "poor does not own it" in found["publication ours"].found
    any_database.execute(found["publication ours"].hint.partition("\n")[2])
    assert Findings(url, router_to(("tickets", UPDATE), ("users", UPDATE))).problems == []
