"""The publication on real servers: what the routes need, by a role that may create it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc_tasks.changes import EventType
from listener.core.source import Saved, SourceError
from listener.postgres.client.connection import connect
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.client.slot import create_slot, read_slot
from listener.postgres.gaps import find_gap
from listener.postgres.log.position import parse_lsn
from listener.postgres.tables.checkpoint_notes import Notes, format_notes
from listener.postgres.tables.publication import read_publication
from listener.router import BinlogRouter, changed
from tests.support.listening import SAVED
from tests.support.postgres.publications import (
    DELETE,
    INSERT,
    UPDATE,
    events_of,
    listed,
    prepare,
    published,
    router_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.postgres.client.connection import Connection
    from tests.conftest import Database


@pytest.fixture
def connection(any_database: Database) -> Iterator[Connection]:
    with contextlib.closing(connect(any_database.url)) as opened:
        yield opened


def test_only_the_tables_columns_and_events_that_routes_name_are_published(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        """CREATE TABLE tickets (id int PRIMARY KEY, title text, status text, "Größe" int, secret text);
        CREATE TABLE users (id int PRIMARY KEY, name text);
        CREATE TABLE passwords (id int PRIMARY KEY)"""
    )
    router = BinlogRouter()
    router.register("public", "tickets", [INSERT], "t", columns=["title", "Größe"])
    router.register("public", "tickets", [UPDATE], "t", when=changed("status"), columns=["id"])
    router.register("public", "users", [INSERT], "t")
    prepare(connection, router)
    columns = listed(connection, "id", "title", "status", "Größe")
    assert published(connection) == {"tickets": columns, "users": None}
    assert events_of(connection) == {INSERT, UPDATE}
    any_database.execute("INSERT INTO tickets VALUES (1); UPDATE tickets SET secret = 'new', id = 2")


def test_names_that_need_quotes_are_quoted(connection: Connection, any_database: Database) -> None:
    any_database.execute(
        'CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."Wörter ""x""" (id int PRIMARY KEY, "sp ace" int, n int)'
    )
    router = router_of(lambda r: r.register("a.b", 'Wörter "x"', UPDATE, "t", columns=["sp ace"]))
    prepare(connection, router)
    assert published(connection) == {'Wörter "x"': listed(connection, "id", "sp ace")}


def test_a_condition_that_may_look_at_anything_needs_all_columns(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    prepare(
        connection,
        router_of(lambda r: r.register("public", "tickets", INSERT, "t", when=bool, columns=["id"])),
    )
    assert published(connection) == {"tickets": None}


def test_a_publication_that_is_right_is_not_touched(connection: Connection, any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text)")
    router = router_of(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["id"]))
    prepare(connection, router)
    before = any_database.fetch(
        "SELECT xmin FROM pg_publication UNION ALL SELECT xmin FROM pg_publication_rel"
    )
    prepare(connection, router)
    after = any_database.fetch(
        "SELECT xmin FROM pg_publication UNION ALL SELECT xmin FROM pg_publication_rel"
    )
    assert after == before


def test_the_publication_follows_the_routes(connection: Connection, any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY, x int); CREATE TABLE b (id int PRIMARY KEY)")
    prepare(connection, router_of(lambda r: r.register("public", "a", INSERT, "t", columns=["id"])))
    prepare(
        connection,
        router_of(
            lambda r: r.register("public", "a", DELETE, "t"), lambda r: r.register("public", "b", INSERT, "t")
        ),
    )
    assert published(connection) == {"a": None, "b": None}
    assert events_of(connection) == {INSERT, DELETE}
    prepare(connection, router_of(lambda r: r.register("public", "b", EventType.ALL, "t")))
    assert published(connection) == {"b": None}
    assert events_of(connection) == {INSERT, UPDATE, DELETE, EventType.TRUNCATE}


def test_a_table_that_comes_to_match_a_glob_is_published_at_the_next_start(
    connection: Connection, any_database: Database
) -> None:
    router = router_of(lambda r: r.register("public", "log_*", INSERT, "t"))
    prepare(connection, router)
    assert published(connection) == {}
    any_database.execute(
        "CREATE TABLE log_1 (x int); CREATE VIEW log_view AS SELECT 1; CREATE UNLOGGED TABLE log_u (x int)"
    )
    prepare(connection, router)
    assert published(connection) == {"log_1": None}
    any_database.execute("DROP VIEW log_view; DROP TABLE log_1")
    prepare(connection, router)
    assert published(connection) == {}


def test_old_values_that_would_come_out_as_null_are_refused(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        """CREATE TABLE events (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        ALTER TABLE events REPLICA IDENTITY FULL"""
    )
    router = router_of(lambda r: r.register("public", "events", EventType.ALL, "t"))
    with pytest.raises(SourceError, match="NULL") as raised:
        prepare(connection, router)
    assert raised.value.hint == "ALTER TABLE public.events_1 REPLICA IDENTITY FULL;"
    any_database.execute(raised.value.hint)
    prepare(connection, router)


def test_a_role_that_may_not_publish_gets_the_sql_for_one_that_may(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    url = _url_of_a_poor_role(any_database)
    narrow = router_of(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["title"]))
    with contextlib.closing(connect(url)) as connection:
        with pytest.raises(PermissionDeniedError) as raised:
            prepare(connection, narrow)
        sql = str(raised.value.hint).partition("\n")[2]
        columns = ' ("id", "title")' if listed(connection) is not None else ""
        assert sql.startswith(
            f'CREATE PUBLICATION "ours" FOR TABLE ONLY "public"."tickets"{columns} WITH (publish'
        )
        any_database.execute(sql)
        prepare(connection, narrow)
        assert published(connection) == {"tickets": listed(connection, "id", "title")}
        if listed(connection) is None:
            return  # it has all columns already

        wide = router_of(lambda r: r.register("public", "tickets", UPDATE, "t"))
        with pytest.raises(PermissionDeniedError) as raised:
            prepare(connection, wide)
        any_database.execute(str(raised.value.hint).partition("\n")[2])
        assert published(connection) == {"tickets": None}
        prepare(connection, narrow)  # more than needed, and not ours to change
        assert published(connection) == {"tickets": None}


def test_a_publication_of_all_tables_is_somebodys_choice(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text)")
    options = "publish_via_partition_root = true"
    if connection.info.server_version >= 18_00_00:
        options += ", publish_generated_columns = stored"
    any_database.execute(f"CREATE PUBLICATION ours FOR ALL TABLES WITH ({options})")
    prepare(connection, router_of(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["title"])))
    assert any_database.fetch("SELECT puballtables FROM pg_publication") == [(True,)]
    any_database.execute("ALTER PUBLICATION ours SET (publish = 'insert')")
    prepare(connection, router_of(lambda r: r.register("public", "tickets", UPDATE, "t")))
    assert UPDATE in events_of(connection)


def test_a_publication_of_a_schema_or_with_filters_becomes_one_of_our_tables(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY); CREATE TABLE users (id int PRIMARY KEY)")
    if connection.info.server_version < 15_00_00:
        pytest.skip("PostgreSQL before 15 has no such publications")
    any_database.execute("CREATE PUBLICATION ours FOR TABLES IN SCHEMA public, TABLE tickets WHERE (id > 5)")
    prepare(connection, router_of(lambda r: r.register("public", "tickets", UPDATE, "t")))
    publication = read_publication(connection, "ours")
    assert publication is not None
    assert (publication.schemas, publication.filtered) == (frozenset(), frozenset())
    assert published(connection) == {"tickets": None}


def test_a_publication_that_vanished_behind_its_slot_is_a_gap(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    prepare(connection, router_of(lambda r: r.register("public", "tickets", INSERT, "t")))
    create_slot(connection, any_database.name, "pgoutput")

    def gap(*, saved: Saved | None, publication: str | None = "ours") -> Exception | None:
        slot = read_slot(connection, any_database.name)
        return find_gap(connection, slot, name=any_database.name, publication=publication, saved=saved)

    assert gap(saved=SAVED) is None
    any_database.execute("DROP PUBLICATION ours")
    assert "The publication ours no longer exists" in str(gap(saved=SAVED))
    read_on = Saved("0/3000000:0", format_notes(Notes(checked_lsn=parse_lsn("0/2000000"))))
    assert "committed after 0/2000000 and" in str(gap(saved=read_on))  # it was gone before the listener was
    behind = Saved("0/1000000:0", read_on.notes)
    assert "committed after 0/1000000:0 (the slot:" in str(gap(saved=behind))
    assert gap(saved=SAVED, publication=None) is None
    any_database.execute("SELECT pg_drop_replication_slot(%s)", any_database.name)
    assert "--accept-gap" in str(gap(saved=SAVED))
    assert gap(saved=None) is None


def _url_of_a_poor_role(database: Database) -> str:
    with contextlib.suppress(psycopg2.errors.DuplicateObject):
        database.execute("CREATE ROLE poor LOGIN REPLICATION")
    return database.server.url_of(database.name, user="poor")
