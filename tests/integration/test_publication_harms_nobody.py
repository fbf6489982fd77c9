"""The publication does the application no harm: none of its statements fails or waits."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.changes import EventType
from harness.waiting import at_most
from listener.core.source import SourceError, SourceLostError
from listener.postgres.client.connection import connect
from listener.postgres.tables.publication import read_publication
from listener.router import became
from tests.support.postgres.publications import DELETE, INSERT, UPDATE, listed, prepare, published, router_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.postgres.client.connection import Connection
    from tests.conftest import Database


@pytest.fixture
def connection(any_database: Database) -> Iterator[Connection]:
    with contextlib.closing(connect(any_database.url)) as opened:
        yield opened


def test_a_table_without_key_is_refused_where_its_updates_would_fail(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute('CREATE TABLE "Journal" (x int); CREATE TABLE tickets (id int PRIMARY KEY)')
    inserts = lambda r: r.register("public", "Journal", INSERT, "t")  # noqa: E731
    updates = lambda r: r.register("public", "tickets", UPDATE, "t")  # noqa: E731
    with pytest.raises(SourceError) as raised:
        prepare(connection, router_of(inserts, updates))
    assert 'ALTER TABLE public."Journal" REPLICA IDENTITY FULL;' in str(raised.value)
    assert read_publication(connection, "ours") is None
    prepare(connection, router_of(inserts))  # nothing fails while only inserts are published
    any_database.execute('INSERT INTO "Journal" VALUES (1); UPDATE "Journal" SET x = 2')
    any_database.execute('ALTER TABLE public."Journal" REPLICA IDENTITY FULL')
    prepare(connection, router_of(inserts, updates))
    any_database.execute('UPDATE "Journal" SET x = 3; DELETE FROM "Journal"')


@pytest.mark.parametrize(
    "identity",
    ["FULL", "NOTHING", "USING INDEX by_code", "DEFAULT"],
)
def test_the_application_goes_on_whatever_the_replica_identity(
    connection: Connection, any_database: Database, identity: str
) -> None:
    any_database.execute(
        f"""CREATE TABLE parts (id int PRIMARY KEY, code int NOT NULL, name text, note text);
        CREATE UNIQUE INDEX by_code ON parts (code);
        INSERT INTO parts VALUES (1, 1, 'a', 'b');
        ALTER TABLE parts REPLICA IDENTITY {identity}"""
    )
    router = router_of(lambda r: r.register("public", "parts", [UPDATE, DELETE], "t", columns=["name"]))
    if identity == "NOTHING":
        with pytest.raises(SourceError, match="would fail"):
            prepare(connection, router)
    else:
        prepare(connection, router)
        columns = {"FULL": None, "USING INDEX by_code": ("code", "name"), "DEFAULT": ("id", "name")}[identity]
        assert published(connection) == {"parts": columns and listed(connection, *columns)}
    any_database.execute("UPDATE parts SET id = 2, code = 2, name = 'c', note = 'd'; DELETE FROM parts")


def test_an_identity_that_became_full_widens_the_columns(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1)")
    router = router_of(lambda r: r.register("public", "t", UPDATE, "t", when=became("a", 1), columns=["id"]))
    prepare(connection, router)
    assert published(connection) == {"t": listed(connection, "id", "a")}
    any_database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    prepare(connection, router)
    assert published(connection) == {"t": None}
    any_database.execute("UPDATE t SET a = 2")


def test_partitions_come_under_their_root_and_keep_working(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        """CREATE TABLE events (id int, day int, note text, secret text, PRIMARY KEY (id, day))
        PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id);
        CREATE TABLE events_2_rest PARTITION OF events_2 DEFAULT"""
    )
    router = router_of(lambda r: r.register("public", "events*", EventType.ALL, "t", columns=["note"]))
    prepare(connection, router)
    partitions = {"events_1": None, "events_2": None, "events_2_rest": None}  # which may be detached
    assert published(connection) == {"events": listed(connection, "id", "day", "note"), **partitions}
    moving = """INSERT INTO events VALUES (1, 1); UPDATE events SET day = 15;
        UPDATE events SET id = 7; DELETE FROM events"""
    any_database.execute(moving)
    any_database.execute("ALTER TABLE events_2_rest REPLICA IDENTITY FULL")
    prepare(connection, router)
    assert published(connection) == {"events": None, **partitions}
    any_database.execute(moving)
    any_database.execute("ALTER TABLE events_1 REPLICA IDENTITY NOTHING")
    with pytest.raises(SourceError, match=r"public\.events_1"):
        prepare(connection, router)


def test_generated_columns_are_published_where_the_server_can(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int, double int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    router = router_of(lambda r: r.register("public", "t", [INSERT, UPDATE], "t", columns=["id", "double"]))
    prepare(connection, router)
    columns = ("id", "double") if connection.info.server_version >= 18_00_00 else ("id",)
    assert published(connection) == {"t": listed(connection, *columns)}
    any_database.execute(
        "INSERT INTO t VALUES (1, 2); UPDATE t SET a = 3; ALTER TABLE t REPLICA IDENTITY FULL"
    )
    prepare(connection, router)
    any_database.execute("UPDATE t SET a = 4")


def test_full_identity_with_a_virtual_column_is_refused_where_updates_would_fail(database: Database) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, v int GENERATED ALWAYS AS (a * 2) VIRTUAL);"
        "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1)"
    )
    router = router_of(lambda r: r.register("public", "t", UPDATE, "t", columns=["id", "v"]))
    with contextlib.closing(connect(database.url)) as connection:
        with pytest.raises(SourceError, match="virtual") as raised:
            prepare(connection, router)
        database.execute(str(raised.value.hint))
        prepare(connection, router)
        assert published(connection) == {"t": {"id"}}
    database.execute("UPDATE t SET a = 2")


def test_a_locked_table_is_not_waited_for_long(
    connection: Connection, any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.postgres.tables.publication._LOCK_TIMEOUT", "100ms")
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    router = router_of(lambda r: r.register("public", "tickets", INSERT, "t"))
    with contextlib.closing(any_database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE tickets IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(SourceLostError, match="lock timeout"):
            prepare(connection, router)
    prepare(connection, router)
    assert published(connection) == {"tickets": None}


def test_readers_and_writers_do_not_wait_while_the_publication_changes(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    with contextlib.closing(any_database.connect()) as writer, writer.cursor() as cursor:
        cursor.execute("INSERT INTO tickets VALUES (1)")
        done = threading.Thread(
            target=prepare,
            args=(connection, router_of(lambda r: r.register("public", "tickets", INSERT, "t"))),
        )
        done.start()
        done.join(timeout=at_most(10))
        assert not done.is_alive()
        cursor.execute("INSERT INTO tickets VALUES (2)")
