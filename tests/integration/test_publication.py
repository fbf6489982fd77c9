"""The publication on real servers: right for the routes, and no harm to the application."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc_tasks.changes import EventType
from listener.monitor import SourceError, SourceLost
from listener.postgres.connection import connect
from listener.postgres.errors import PermissionDenied
from listener.postgres.preparation import find_gap, prepare_publication
from listener.postgres.publication import read_publication
from listener.postgres.slot import create_slot, read_slot
from listener.router import BinlogRouter, became, changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from listener.postgres.connection import Connection
    from tests.conftest import Database

INSERT, UPDATE, DELETE = EventType.INSERT, EventType.UPDATE, EventType.DELETE


@pytest.fixture
def connection(any_database: Database) -> Iterator[Connection]:
    with contextlib.closing(connect(any_database.url)) as opened:
        yield opened


def _router(*routes: Callable[[BinlogRouter], object]) -> BinlogRouter:
    router = BinlogRouter()
    for add in routes:
        add(router)
    return router


def _prepare(connection: Connection, router: BinlogRouter) -> None:
    prepare_publication(connection, "ours", router.routes)


def _published(connection: Connection) -> dict[str, set[str] | None]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return {
        table: None if columns is None else set(columns) for (_, table), columns in publication.tables.items()
    }


def _events(connection: Connection) -> set[EventType]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return set(publication.events)


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
    _prepare(connection, router)
    assert _published(connection) == {"tickets": {"id", "title", "status", "Größe"}, "users": None}
    assert _events(connection) == {INSERT, UPDATE}
    any_database.execute("INSERT INTO tickets VALUES (1); UPDATE tickets SET secret = 'new', id = 2")


def test_names_that_need_quotes_are_quoted(connection: Connection, any_database: Database) -> None:
    any_database.execute(
        'CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."Wörter ""x""" (id int PRIMARY KEY, "sp ace" int, n int)'
    )
    router = _router(lambda r: r.register("a.b", 'Wörter "x"', UPDATE, "t", columns=["sp ace"]))
    _prepare(connection, router)
    assert _published(connection) == {'Wörter "x"': {"id", "sp ace"}}


def test_a_condition_that_may_look_at_anything_needs_all_columns(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    _prepare(
        connection, _router(lambda r: r.register("public", "tickets", INSERT, "t", when=bool, columns=["id"]))
    )
    assert _published(connection) == {"tickets": None}


def test_a_publication_that_is_right_is_not_touched(connection: Connection, any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text)")
    router = _router(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["id"]))
    _prepare(connection, router)
    before = any_database.fetch(
        "SELECT xmin FROM pg_publication UNION ALL SELECT xmin FROM pg_publication_rel"
    )
    _prepare(connection, router)
    after = any_database.fetch(
        "SELECT xmin FROM pg_publication UNION ALL SELECT xmin FROM pg_publication_rel"
    )
    assert after == before


def test_the_publication_follows_the_routes(connection: Connection, any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY, x int); CREATE TABLE b (id int PRIMARY KEY)")
    _prepare(connection, _router(lambda r: r.register("public", "a", INSERT, "t", columns=["id"])))
    _prepare(
        connection,
        _router(
            lambda r: r.register("public", "a", DELETE, "t"), lambda r: r.register("public", "b", INSERT, "t")
        ),
    )
    assert _published(connection) == {"a": None, "b": None}
    assert _events(connection) == {INSERT, DELETE}
    _prepare(connection, _router(lambda r: r.register("public", "b", EventType.ALL, "t")))
    assert _published(connection) == {"b": None}
    assert _events(connection) == {INSERT, UPDATE, DELETE, EventType.TRUNCATE}


def test_a_table_that_comes_to_match_a_glob_is_published_at_the_next_start(
    connection: Connection, any_database: Database
) -> None:
    router = _router(lambda r: r.register("public", "log_*", INSERT, "t"))
    _prepare(connection, router)
    assert _published(connection) == {}
    any_database.execute(
        "CREATE TABLE log_1 (x int); CREATE VIEW log_view AS SELECT 1; CREATE UNLOGGED TABLE log_u (x int)"
    )
    _prepare(connection, router)
    assert _published(connection) == {"log_1": None}
    any_database.execute("DROP VIEW log_view; DROP TABLE log_1")
    _prepare(connection, router)
    assert _published(connection) == {}


def test_a_table_without_key_is_refused_where_its_updates_would_fail(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute('CREATE TABLE "Journal" (x int); CREATE TABLE tickets (id int PRIMARY KEY)')
    inserts = lambda r: r.register("public", "Journal", INSERT, "t")  # noqa: E731
    updates = lambda r: r.register("public", "tickets", UPDATE, "t")  # noqa: E731
    with pytest.raises(SourceError) as raised:
        _prepare(connection, _router(inserts, updates))
    assert 'ALTER TABLE public."Journal" REPLICA IDENTITY FULL;' in str(raised.value)
    assert read_publication(connection, "ours") is None
    _prepare(connection, _router(inserts))  # nothing fails while only inserts are published
    any_database.execute('INSERT INTO "Journal" VALUES (1); UPDATE "Journal" SET x = 2')
    any_database.execute('ALTER TABLE public."Journal" REPLICA IDENTITY FULL')
    _prepare(connection, _router(inserts, updates))
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
    router = _router(lambda r: r.register("public", "parts", [UPDATE, DELETE], "t", columns=["name"]))
    if identity == "NOTHING":
        with pytest.raises(SourceError, match="would fail"):
            _prepare(connection, router)
    else:
        _prepare(connection, router)
        expected = {"FULL": None, "USING INDEX by_code": {"code", "name"}, "DEFAULT": {"id", "name"}}
        assert _published(connection) == {"parts": expected[identity]}
    any_database.execute("UPDATE parts SET id = 2, code = 2, name = 'c', note = 'd'; DELETE FROM parts")


def test_an_identity_that_became_full_widens_the_columns(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1)")
    router = _router(lambda r: r.register("public", "t", UPDATE, "t", when=became("a", 1), columns=["id"]))
    _prepare(connection, router)
    assert _published(connection) == {"t": {"id", "a"}}
    any_database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    _prepare(connection, router)
    assert _published(connection) == {"t": None}
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
    router = _router(lambda r: r.register("public", "events*", EventType.ALL, "t", columns=["note"]))
    _prepare(connection, router)
    assert _published(connection) == {"events": {"id", "day", "note"}}
    moving = """INSERT INTO events VALUES (1, 1); UPDATE events SET day = 15;
        UPDATE events SET id = 7; DELETE FROM events"""
    any_database.execute(moving)
    any_database.execute("ALTER TABLE events_2_rest REPLICA IDENTITY FULL")
    _prepare(connection, router)
    assert _published(connection) == {"events": None}
    any_database.execute(moving)
    any_database.execute("ALTER TABLE events_1 REPLICA IDENTITY NOTHING")
    with pytest.raises(SourceError, match=r"public\.events_1"):
        _prepare(connection, router)


def test_old_values_that_would_come_out_as_null_are_refused(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        """CREATE TABLE events (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        ALTER TABLE events REPLICA IDENTITY FULL"""
    )
    router = _router(lambda r: r.register("public", "events", EventType.ALL, "t"))
    with pytest.raises(SourceError, match="NULL") as raised:
        _prepare(connection, router)
    assert raised.value.hint == "ALTER TABLE public.events_1 REPLICA IDENTITY FULL;"
    any_database.execute(raised.value.hint)
    _prepare(connection, router)


def test_generated_columns_are_published_where_the_server_can(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b int, double int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    router = _router(lambda r: r.register("public", "t", [INSERT, UPDATE], "t", columns=["id", "double"]))
    _prepare(connection, router)
    is_18 = connection.info.server_version >= 18_00_00
    assert _published(connection) == {"t": {"id", "double"} if is_18 else {"id"}}
    any_database.execute(
        "INSERT INTO t VALUES (1, 2); UPDATE t SET a = 3; ALTER TABLE t REPLICA IDENTITY FULL"
    )
    _prepare(connection, router)
    any_database.execute("UPDATE t SET a = 4")


def test_full_identity_with_a_virtual_column_is_refused_where_updates_would_fail(database: Database) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, v int GENERATED ALWAYS AS (a * 2) VIRTUAL);"
        "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1)"
    )
    router = _router(lambda r: r.register("public", "t", UPDATE, "t", columns=["id", "v"]))
    with contextlib.closing(connect(database.url)) as connection:
        with pytest.raises(SourceError, match="virtual") as raised:
            _prepare(connection, router)
        database.execute(str(raised.value.hint))
        _prepare(connection, router)
        assert _published(connection) == {"t": {"id"}}
    database.execute("UPDATE t SET a = 2")


def test_a_role_that_may_not_publish_gets_the_sql_for_one_that_may(any_database: Database) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text, secret text)")
    url = _url_of_a_poor_role(any_database)
    narrow = _router(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["title"]))
    with contextlib.closing(connect(url)) as connection:
        with pytest.raises(PermissionDenied) as raised:
            _prepare(connection, narrow)
        sql = str(raised.value.hint).partition("\n")[2]
        assert sql.startswith(
            'CREATE PUBLICATION "ours" FOR TABLE ONLY "public"."tickets" ("id", "title") WITH (publish'
        )
        any_database.execute(sql)
        _prepare(connection, narrow)
        assert _published(connection) == {"tickets": {"id", "title"}}

        wide = _router(lambda r: r.register("public", "tickets", UPDATE, "t"))
        with pytest.raises(PermissionDenied) as raised:
            _prepare(connection, wide)
        any_database.execute(str(raised.value.hint).partition("\n")[2])
        assert _published(connection) == {"tickets": None}
        _prepare(connection, narrow)  # more than needed, and not ours to change
        assert _published(connection) == {"tickets": None}


def test_a_publication_of_all_tables_is_somebodys_choice(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, title text)")
    options = "publish_via_partition_root = true"
    if connection.info.server_version >= 18_00_00:
        options += ", publish_generated_columns = stored"
    any_database.execute(f"CREATE PUBLICATION ours FOR ALL TABLES WITH ({options})")
    _prepare(connection, _router(lambda r: r.register("public", "tickets", UPDATE, "t", columns=["title"])))
    assert any_database.fetch("SELECT puballtables FROM pg_publication") == [(True,)]
    any_database.execute("ALTER PUBLICATION ours SET (publish = 'insert')")
    _prepare(connection, _router(lambda r: r.register("public", "tickets", UPDATE, "t")))
    assert UPDATE in _events(connection)


def test_a_publication_of_a_schema_or_with_filters_becomes_one_of_our_tables(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY); CREATE TABLE users (id int PRIMARY KEY)")
    any_database.execute("CREATE PUBLICATION ours FOR TABLES IN SCHEMA public, TABLE tickets WHERE (id > 5)")
    _prepare(connection, _router(lambda r: r.register("public", "tickets", UPDATE, "t")))
    publication = read_publication(connection, "ours")
    assert publication is not None
    assert (publication.schemas, publication.filtered) == (frozenset(), frozenset())
    assert _published(connection) == {"tickets": None}


def test_a_table_that_somebody_holds_is_not_waited_for_long(
    connection: Connection, any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.postgres.publication._LOCK_TIMEOUT", "100ms")
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    router = _router(lambda r: r.register("public", "tickets", INSERT, "t"))
    with contextlib.closing(any_database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE tickets IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(SourceLost, match="lock timeout"):
            _prepare(connection, router)
    _prepare(connection, router)
    assert _published(connection) == {"tickets": None}


def test_readers_and_writers_do_not_wait_while_the_publication_changes(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    with contextlib.closing(any_database.connect()) as writer, writer.cursor() as cursor:
        cursor.execute("INSERT INTO tickets VALUES (1)")
        done = threading.Thread(
            target=_prepare,
            args=(connection, _router(lambda r: r.register("public", "tickets", INSERT, "t"))),
        )
        done.start()
        done.join(timeout=10)
        assert not done.is_alive()
        cursor.execute("INSERT INTO tickets VALUES (2)")


def test_a_publication_that_vanished_behind_its_slot_is_a_gap(
    connection: Connection, any_database: Database
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    _prepare(connection, _router(lambda r: r.register("public", "tickets", INSERT, "t")))
    create_slot(connection, any_database.name, "pgoutput")

    def gap(*, resumes: bool, publication: str | None = "ours") -> Exception | None:
        slot = read_slot(connection, any_database.name)
        return find_gap(connection, slot, name=any_database.name, publication=publication, resumes=resumes)

    assert gap(resumes=True) is None
    any_database.execute("DROP PUBLICATION ours")
    assert "The publication ours is gone" in str(gap(resumes=True))
    assert gap(resumes=True, publication=None) is None
    any_database.execute("SELECT pg_drop_replication_slot(%s)", any_database.name)
    assert "--accept-gap" in str(gap(resumes=True))
    assert gap(resumes=False) is None


def _url_of_a_poor_role(database: Database) -> str:
    with contextlib.suppress(psycopg2.errors.DuplicateObject):
        database.execute("CREATE ROLE poor LOGIN REPLICATION")
    return database.server.url_of(database.name, user="poor")
