"""Tables and types that change while the listener reads them."""

from __future__ import annotations

from tests.support.postgres.source import PostgresSource, rows_of


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
        "INSERT INTO items VALUES (1, 'a', repeat('long ', 1000))",
    )
    source.watch("items")
    source.execute("UPDATE items SET note = 'b'")
    assert rows_of(source.changes(1)) == [("update", None, {"id": 1, "note": "b"}, ("body",))]
    source.execute("ALTER TABLE items DROP body", "UPDATE items SET note = 'c'")
    assert rows_of(source.changes(1)) == [("update", None, {"id": 1, "note": "c"}, ())]


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


def test_a_table_that_is_created_again_is_read_after_a_restart(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, a text)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1, 'a')")
    assert [change.row for change in source.changes(1)] == [{"id": 1, "a": "a"}]
    source.stop()
    source.execute("DROP TABLE items", "CREATE TABLE items (b bool, id int PRIMARY KEY)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (true, 2)")
    assert [change.row for change in source.changes(1)] == [{"b": True, "id": 2}]
