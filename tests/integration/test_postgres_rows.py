"""What happens to rows and tables, from real servers through the monitor: the same through both plugins."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.postgres_source import PLUGINS, PostgresSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import Change

LONG = "repeat('long ', 1000)"
THE_LONG_TEXT = "long " * 1000


@pytest.fixture(params=PLUGINS, ids="-".join)
def source(request: pytest.FixtureRequest) -> Iterator[PostgresSource]:
    fixture, plugin = request.param
    with PostgresSource(request.getfixturevalue(fixture), plugin) as source:
        yield source


def test_rows_come_in_commit_order_each_with_its_position(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    source.watch("items")
    with source.database.connect() as early, early.cursor() as cursor:
        cursor.execute("INSERT INTO items VALUES (1), (2)")
        source.execute("INSERT INTO items VALUES (3)")
        early.commit()
    early.close()
    changes = source.changes(3)
    assert [change.row["id"] for change in changes] == [3, 1, 2]
    assert len({change.id for change in changes}) == 3
    assert [change.position.rpartition(":")[2] for change in changes] == ["0", "0", "1"]
    assert changes[0].committed_at < changes[1].committed_at == changes[2].committed_at


def test_what_is_rolled_back_never_comes(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    source.watch("items")
    source.execute(
        "BEGIN; INSERT INTO items VALUES (1); ROLLBACK",
        "BEGIN; INSERT INTO items VALUES (2); SAVEPOINT s; INSERT INTO items VALUES (3); ROLLBACK TO s;"
        " INSERT INTO items VALUES (4); COMMIT",
    )
    assert [change.row["id"] for change in source.changes(2)] == [2, 4]


def test_a_primary_key_identifies_the_old_row(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int, kind text, note text, PRIMARY KEY (kind, id))")
    source.watch("items")
    source.execute(
        "INSERT INTO items VALUES (1, 'a', NULL)",
        "UPDATE items SET note = 'n'",
        "UPDATE items SET kind = 'b'",
        "DELETE FROM items",
    )
    assert told(source.changes(4)) == [
        ("insert", None, {"id": 1, "kind": "a", "note": None}, ()),
        ("update", None, {"id": 1, "kind": "a", "note": "n"}, ()),
        ("update", {"id": 1, "kind": "a"}, {"id": 1, "kind": "b", "note": "n"}, ("note",)),
        ("delete", {"id": 1, "kind": "b"}, None, ("note",)),
    ]


def test_replica_identity_full_gives_the_old_row(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text)", "ALTER TABLE items REPLICA IDENTITY FULL"
    )
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1, NULL)", "UPDATE items SET note = 'n'", "DELETE FROM items")
    assert told(source.changes(3))[1:] == [
        ("update", {"id": 1, "note": None}, {"id": 1, "note": "n"}, ()),
        ("delete", {"id": 1, "note": "n"}, None, ()),
    ]


def test_replica_identity_index_gives_the_columns_of_the_index(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int, code text NOT NULL UNIQUE)",
        "ALTER TABLE items REPLICA IDENTITY USING INDEX items_code_key",
    )
    source.watch("items")
    source.execute(
        "INSERT INTO items VALUES (1, 'a')",
        "UPDATE items SET id = 2",
        "UPDATE items SET code = 'b'",
        "DELETE FROM items",
    )
    assert told(source.changes(4))[1:] == [
        ("update", None, {"id": 2, "code": "a"}, ()),
        ("update", {"code": "a"}, {"id": 2, "code": "b"}, ("id",)),
        ("delete", {"code": "b"}, None, ("id",)),
    ]


def test_replica_identity_can_be_changed_in_mid_stream(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, note text)")
    source.watch("items")
    source.execute(
        "INSERT INTO items VALUES (1, 'a')",
        "UPDATE items SET note = 'b'",
        "ALTER TABLE items REPLICA IDENTITY FULL",
        "UPDATE items SET note = 'c'",
        "ALTER TABLE items REPLICA IDENTITY DEFAULT",
        "UPDATE items SET note = 'd'",
    )
    assert [change.before for change in source.changes(4)] == [None, None, {"id": 1, "note": "b"}, None]


def test_an_unchanged_toast_value_is_unavailable_not_null(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text, body text)",
        "ALTER TABLE items ALTER body SET STORAGE EXTERNAL",
    )
    source.watch("items")
    source.execute(
        f"INSERT INTO items VALUES (1, 'a', {LONG})",
        "UPDATE items SET note = 'b'",
        f"UPDATE items SET body = {LONG} || note",
        "UPDATE items SET body = NULL",
    )
    assert told(source.changes(4)) == [
        ("insert", None, {"id": 1, "note": "a", "body": THE_LONG_TEXT}, ()),
        ("update", None, {"id": 1, "note": "b"}, ("body",)),
        ("update", None, {"id": 1, "note": "b", "body": THE_LONG_TEXT + "b"}, ()),
        ("update", None, {"id": 1, "note": "b", "body": None}, ()),
    ]


def test_with_replica_identity_full_an_unchanged_toast_value_is_there(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text, body text)",
        "ALTER TABLE items ALTER body SET STORAGE EXTERNAL",
        "ALTER TABLE items REPLICA IDENTITY FULL",
        f"INSERT INTO items VALUES (1, 'a', {LONG})",
    )
    source.watch("items")
    source.execute("UPDATE items SET note = 'b'", "DELETE FROM items")
    before, after = ({"id": 1, "note": note, "body": THE_LONG_TEXT} for note in "ab")
    assert told(source.changes(2)) == [("update", before, after, ()), ("delete", after, None, ())]


def test_a_column_may_come_and_go_and_change_its_name_and_type(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, a text)")
    source.watch("items")
    seen = []
    for statements in (
        ["INSERT INTO items VALUES (1, 'one')"],
        ["ALTER TABLE items ADD b int DEFAULT 7", "UPDATE items SET a = 'two'"],
        ["ALTER TABLE items RENAME b TO c", "UPDATE items SET c = 8"],
        [
            "ALTER TABLE items ALTER c DROP DEFAULT, ALTER c TYPE jsonb USING to_jsonb(c)",
            "UPDATE items SET c = '[1]'",
        ],
        ["ALTER TABLE items DROP a", "UPDATE items SET id = 1"],
        [
            "BEGIN; INSERT INTO items VALUES (2); ALTER TABLE items DROP c; DELETE FROM items WHERE id = 2; COMMIT"
        ],
    ):
        source.execute(*statements)
        seen.append([change.row for change in source.changes(2 if "BEGIN" in statements[0] else 1)])
    assert seen == [
        [{"id": 1, "a": "one"}],
        [{"id": 1, "a": "two", "b": 7}],
        [{"id": 1, "a": "two", "c": 8}],
        [{"id": 1, "a": "two", "c": [1]}],
        [{"id": 1, "c": [1]}],
        [{"id": 2, "c": None}, {"id": 2}],
    ]


def test_a_dropped_toast_column_is_no_longer_unavailable(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text, body text)",
        "ALTER TABLE items ALTER body SET STORAGE EXTERNAL",
        f"INSERT INTO items VALUES (1, 'a', {LONG})",
    )
    source.watch("items")
    source.execute("UPDATE items SET note = 'b'")
    assert told(source.changes(1)) == [("update", None, {"id": 1, "note": "b"}, ("body",))]
    source.execute("ALTER TABLE items DROP body", "UPDATE items SET note = 'c'")
    assert told(source.changes(1)) == [("update", None, {"id": 1, "note": "c"}, ())]


def test_a_type_may_change_in_mid_stream(source: PostgresSource) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('sad')", "CREATE TABLE items (id int PRIMARY KEY, mood mood)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1, 'sad')", "ALTER TYPE mood ADD VALUE 'happy'")
    source.execute(
        "INSERT INTO items VALUES (2, 'happy')",
        "CREATE DOMAIN score AS int",
        "ALTER TABLE items ADD score score[]",
        "INSERT INTO items VALUES (3, 'sad', '{1}')",
    )
    assert [change.row for change in source.changes(3)] == [
        {"id": 1, "mood": "sad"},
        {"id": 2, "mood": "happy"},
        {"id": 3, "mood": "sad", "score": [1]},
    ]


def test_rows_of_a_type_that_was_dropped_since_are_text(source: PostgresSource) -> None:
    source.execute(
        "CREATE DOMAIN score AS int", "CREATE TABLE items (id int PRIMARY KEY, score score, scores score[])"
    )
    source.watch("items")
    source.execute(
        "BEGIN; INSERT INTO items VALUES (1, 7, '{7}'); DROP DOMAIN score CASCADE; COMMIT",
        "INSERT INTO items VALUES (2)",
    )
    assert [change.row for change in source.changes(2)] == [
        {"id": 1, "score": "7", "scores": "{7}"},
        {"id": 2},
    ]


def test_truncate_of_several_tables_is_a_change_of_each(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE parents (id int PRIMARY KEY)",
        "CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents)",
        "CREATE TABLE others (id int PRIMARY KEY)",
        "CREATE TABLE unwatched (id int PRIMARY KEY)",
    )
    source.watch("parents", "children", "others")
    source.execute("INSERT INTO others VALUES (1)", "TRUNCATE unwatched, others, parents CASCADE")
    inserted, *truncated = source.changes(4)
    assert inserted.table == "others"
    assert {(change.table, change.event.value) for change in truncated} == {
        ("parents", "truncate"),
        ("children", "truncate"),
        ("others", "truncate"),
    }
    assert all(change.before is change.after is None and change.row == {} for change in truncated)


def test_partitions_are_reported_under_their_root(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE events (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
        "CREATE TABLE events_lowest PARTITION OF events_low FOR VALUES FROM (0) TO (10)",
        "CREATE SCHEMA archive",
        "CREATE TABLE archive.high (note text, gone int, id int PRIMARY KEY)",
        "ALTER TABLE archive.high DROP gone",
        "ALTER TABLE events ATTACH PARTITION archive.high FOR VALUES FROM (100) TO (200)",
    )
    source.watch("events")
    source.execute(
        "INSERT INTO events VALUES (1, 'a')",
        "UPDATE events SET note = 'b'",
        "UPDATE events SET id = 101",
        "UPDATE archive.high SET note = 'c'",
        "DELETE FROM events",
        "TRUNCATE events",
    )
    changes = source.changes(7)
    assert {(change.schema, change.table) for change in changes} == {("public", "events")}
    assert told(changes) == [
        ("insert", None, {"id": 1, "note": "a"}, ()),
        ("update", None, {"id": 1, "note": "b"}, ()),
        ("delete", {"id": 1}, None, ("note",)),
        ("insert", None, {"id": 101, "note": "b"}, ()),
        ("update", None, {"id": 101, "note": "c"}, ()),
        ("delete", {"id": 101}, None, ("note",)),
        ("truncate", None, None, ()),
    ]
    assert changes[2].position.partition(":")[0] == changes[3].position.partition(":")[0]


def test_a_partition_that_comes_and_goes_is_followed(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE apart (id int PRIMARY KEY)",
        "CREATE TABLE marks (id int PRIMARY KEY)",
    )
    source.watch("events", "marks")
    source.execute("INSERT INTO apart VALUES (1), (10)", "DELETE FROM apart WHERE id = 1")
    source.execute("CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (9)")
    source.execute("INSERT INTO events VALUES (2)", "INSERT INTO marks VALUES (1)")
    assert [(change.table, change.row["id"]) for change in source.changes(2)] == [("events", 2), ("marks", 1)]
    source.execute("ALTER TABLE events ATTACH PARTITION apart FOR VALUES FROM (10) TO (20)")
    source.execute("INSERT INTO events VALUES (11)", "INSERT INTO marks VALUES (2)")
    assert [(change.table, change.row["id"]) for change in source.changes(2)] == [
        ("events", 11),
        ("marks", 2),
    ]
    source.execute("ALTER TABLE events DETACH PARTITION apart")
    source.execute("INSERT INTO apart VALUES (12)", "INSERT INTO marks VALUES (3)")
    assert [(change.table, change.row["id"]) for change in source.changes(1)] == [("marks", 3)]


def test_a_route_that_names_a_partition_gets_it_under_its_own_name(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE events_high PARTITION OF events FOR VALUES FROM (100) TO (200)",
    )
    source.watch("events_low")
    source.execute("INSERT INTO events VALUES (101), (1)", "TRUNCATE events_low")
    assert [(change.table, change.event.value) for change in source.changes(2)] == [
        ("events_low", "insert"),
        ("events_low", "truncate"),
    ]


def test_inherited_tables_are_tables_of_their_own(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE parents (id int PRIMARY KEY)",
        "CREATE TABLE children (PRIMARY KEY (id)) INHERITS (parents)",
    )
    source.watch("*")
    source.execute("INSERT INTO parents VALUES (1)", "INSERT INTO children VALUES (2)")
    assert [(change.table, change.row) for change in source.changes(2)] == [
        ("parents", {"id": 1}),
        ("children", {"id": 2}),
    ]


def test_stored_generated_columns_come_where_the_server_sends_them(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1)", "UPDATE items SET id = 2")
    are_sent = source.plugin == "wal2json" or source.database.connection.server_version >= 18_00_00
    expected = [{"id": 1, "twice": 2}, {"id": 2, "twice": 4}] if are_sent else [{"id": 1}, {"id": 2}]
    assert [change.after for change in source.changes(2)] == expected


def test_names_are_what_they_are(source: PostgresSource) -> None:
    source.execute(
        """CREATE TYPE "Ty""pe" AS ENUM ('x')""",
        """CREATE TABLE "Größe: %s ""x"" {}" ("Id" int PRIMARY KEY, "a.b" "Ty""pe", "日本 \\ '" text)""",
    )
    source.watch("Größe*")
    source.execute("""INSERT INTO "Größe: %s ""x"" {}" VALUES (1, 'x', 'ü')""")
    (change,) = source.changes(1)
    assert change.table == 'Größe: %s "x" {}'
    assert change.row == {"Id": 1, "a.b": "x", "日本 \\ '": "ü"}


def test_rows_of_tables_that_no_route_names_do_not_come(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)", "CREATE TABLE noise (id int)")
    source.execute("CREATE SCHEMA other", "CREATE TABLE other.items (id int PRIMARY KEY)")
    source.watch("items")
    source.execute(
        "INSERT INTO noise VALUES (1)",
        "INSERT INTO other.items VALUES (2)",
        "BEGIN; INSERT INTO noise VALUES (3); INSERT INTO items VALUES (4); COMMIT",
        "CREATE TEMPORARY TABLE items (id int); INSERT INTO items VALUES (5)",
    )
    source.execute("DROP TABLE pg_temp.items", "INSERT INTO items VALUES (6)")
    assert [change.row["id"] for change in source.changes(2)] == [4, 6]


def test_a_table_that_is_made_anew_is_watched_again_after_a_restart(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, a text)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1, 'a')")
    assert [change.row for change in source.changes(1)] == [{"id": 1, "a": "a"}]
    source.stop()
    source.execute("DROP TABLE items", "CREATE TABLE items (b bool, id int PRIMARY KEY)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (true, 2)")
    assert [change.row for change in source.changes(1)] == [{"b": True, "id": 2}]


def test_two_transactions_at_once_keep_their_rows_together(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, writer int)")
    source.watch("items")
    writers = [threading.Thread(target=_write, args=(source, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    changes = source.changes(4 * 10 * 5)
    for writer in writers:
        writer.join()
    in_order = [change.row for change in changes]
    for start in range(0, len(in_order), 5):
        assert len({row["writer"] for row in in_order[start : start + 5]}) == 1
    for writer in range(4):
        ids = [row["id"] for row in in_order if row["writer"] == writer]
        assert ids == sorted(ids)


def _write(source: PostgresSource, writer: int) -> None:
    """Ten transactions of five rows."""
    with source.database.connect() as connection, connection.cursor() as cursor:
        for transaction in range(10):
            for row in range(5):
                cursor.execute(
                    "INSERT INTO items VALUES (%s, %s)", [writer * 1000 + transaction * 5 + row, writer]
                )
            connection.commit()
    connection.close()


def told(changes: list[Change]) -> list[tuple[str, Any, Any, tuple[str, ...]]]:
    return [(change.event.value, change.before, change.after, change.unavailable) for change in changes]
