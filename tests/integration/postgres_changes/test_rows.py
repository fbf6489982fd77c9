"""What happens to rows, from real servers through the monitor: the same through both plugins."""

from __future__ import annotations

import threading

from tests.support.postgres.source import PostgresSource, rows_of

LONG = "repeat('long ', 1000)"
THE_LONG_TEXT = "long " * 1000


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
    assert rows_of(source.changes(4)) == [
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
    assert rows_of(source.changes(3))[1:] == [
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
    assert rows_of(source.changes(4))[1:] == [
        ("update", None, {"id": 2, "code": "a"}, ()),
        ("update", {"code": "a"}, {"id": 2, "code": "b"}, ("id",)),
        ("delete", {"code": "b"}, None, ("id",)),
    ]


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
    assert rows_of(source.changes(4)) == [
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
    assert rows_of(source.changes(2)) == [("update", before, after, ()), ("delete", after, None, ())]


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


def test_two_transactions_at_once_keep_their_rows_together(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, writer int)")
    source.watch("items")
    threads = [threading.Thread(target=_write, args=(source, writer)) for writer in range(4)]
    for thread in threads:
        thread.start()
    changes = source.changes(4 * 10 * 5)
    for thread in threads:
        thread.join()
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
