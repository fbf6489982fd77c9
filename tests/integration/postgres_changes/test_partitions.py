"""Partitioned tables, and tables with inheritance."""

from __future__ import annotations

from tests.support.postgres.source import PostgresSource, rows_of


def test_partitions_are_reported_under_their_root(pgoutput: PostgresSource) -> None:
    pgoutput.execute(
        "CREATE TABLE events (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
        "CREATE TABLE events_lowest PARTITION OF events_low FOR VALUES FROM (0) TO (10)",
        "CREATE SCHEMA archive",
        "CREATE TABLE archive.high (note text, gone int, id int PRIMARY KEY)",
        "ALTER TABLE archive.high DROP gone",
        "ALTER TABLE events ATTACH PARTITION archive.high FOR VALUES FROM (100) TO (200)",
    )
    pgoutput.watch("events")
    pgoutput.execute(
        "INSERT INTO events VALUES (1, 'a')",
        "UPDATE events SET note = 'b'",
        "UPDATE events SET id = 101",
        "UPDATE archive.high SET note = 'c'",
        "DELETE FROM events",
        "TRUNCATE events",
    )
    changes = pgoutput.changes(7)
    assert {(change.schema, change.table) for change in changes} == {("public", "events")}
    assert rows_of(changes) == [
        ("insert", None, {"id": 1, "note": "a"}, ()),
        ("update", None, {"id": 1, "note": "b"}, ()),
        ("delete", {"id": 1}, None, ("note",)),
        ("insert", None, {"id": 101, "note": "b"}, ()),
        ("update", None, {"id": 101, "note": "c"}, ()),
        ("delete", {"id": 101}, None, ("note",)),
        ("truncate", None, None, ()),
    ]
    assert changes[2].position.partition(":")[0] == changes[3].position.partition(":")[0]


def test_a_partition_that_comes_and_goes_is_followed(pgoutput: PostgresSource) -> None:
    pgoutput.execute(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE apart (id int PRIMARY KEY)",
        "CREATE TABLE marks (id int PRIMARY KEY)",
    )
    pgoutput.watch("events", "marks")
    is_old = pgoutput.database.connection.info.server_version < 15_00_00
    renewal = "ALTER PUBLICATION cdc_tasks SET (publish_via_partition_root = true)" if is_old else ""
    pgoutput.execute("INSERT INTO apart VALUES (1), (10)", "DELETE FROM apart WHERE id = 1")
    pgoutput.execute("CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (9)")
    pgoutput.execute("INSERT INTO events VALUES (2)", "INSERT INTO marks VALUES (1)")
    assert [(change.table, change.row["id"]) for change in pgoutput.changes(2)] == [
        ("events", 2),
        ("marks", 1),
    ]
    pgoutput.execute(f"ALTER TABLE events ATTACH PARTITION apart FOR VALUES FROM (10) TO (20); {renewal}")
    pgoutput.execute("INSERT INTO events VALUES (11)", "INSERT INTO marks VALUES (2)")
    assert [(change.table, change.row["id"]) for change in pgoutput.changes(2)] == [
        ("events", 11),
        ("marks", 2),
    ]
    pgoutput.execute(f"ALTER TABLE events DETACH PARTITION apart; {renewal}")
    pgoutput.execute("INSERT INTO apart VALUES (12)", "INSERT INTO marks VALUES (3)")
    assert [(change.table, change.row["id"]) for change in pgoutput.changes(1)] == [("marks", 3)]


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
