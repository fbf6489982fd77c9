"""What wal2json does not send, on a real server: refused, or unavailable, and never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from harness.waiting import wait_until
from listener.core.findings import State
from listener.core.source import SourceError
from listener.postgres.status import read_postgres_status
from tests.support.postgres.findings import INSERT, Findings, router_to
from tests.support.postgres.source import PostgresSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

PARTITIONED = (
    "CREATE TABLE events (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
    "CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (100)",
)
SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
ATTACH = "ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (100)"


@pytest.fixture
def source(debian_database: Database) -> Iterator[PostgresSource]:
    with PostgresSource(debian_database, "wal2json") as source:
        yield source


@pytest.mark.parametrize("named", ["events", "*", "e*s"])
def test_a_route_to_a_partitioned_table_is_refused_by_check_and_run(
    source: PostgresSource, named: str
) -> None:
    source.execute(*PARTITIONED)
    found = Findings(source.database.url, router_to((named, [INSERT])), plugin="wal2json")[
        "table public.events"
    ]
    assert found.state is State.PROBLEM
    assert "is partitioned, and wal2json does not show which table" in found.found
    assert "CDC_PLUGIN=pgoutput" in found.hint
    with pytest.raises(SourceError, match=r"public\.events: is partitioned") as refused:
        source.watch(named)
    assert "CDC_PLUGIN=pgoutput" in refused.value.hint
    assert source.database.fetch(
        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    ) == [(0,)]


def test_routes_to_the_partitions_themselves_are_not_refused(source: PostgresSource) -> None:
    source.execute(*PARTITIONED)
    found = Findings(source.database.url, router_to(("events_0", [INSERT])), plugin="wal2json")
    assert found.problems == []


@pytest.mark.parametrize("watched", ["events", "*"])
@pytest.mark.parametrize(
    "statements",
    [
        ["BEGIN; ALTER TABLE events RENAME TO plain; " + "; ".join(PARTITIONED) + "; COMMIT"],
        ["DROP TABLE events", *PARTITIONED],
        ["ALTER TABLE events RENAME TO events_1", PARTITIONED[0], ATTACH],
    ],
    ids=["in one transaction", "dropped", "attached"],
)  # fmt: skip
@pytest.mark.parametrize("is_running", [True, False])
def test_a_table_that_becomes_a_partitioned_one_stops_the_listener_before_a_row_is_left_out(
    source: PostgresSource, watched: str, statements: list[str], is_running: bool
) -> None:
    source.execute("CREATE TABLE events (id int PRIMARY KEY, note text)")
    source.watch(watched)
    source.execute("INSERT INTO events VALUES (1)")
    assert [change.row["id"] for change in source.changes(1)] == [1]
    if not is_running:
        source.stop()
    source.execute(*statements, "INSERT INTO events VALUES (2)")
    lsn = source.database.fetch("SELECT pg_current_wal_lsn()")[0][0]
    if is_running:
        with pytest.raises(SourceError, match="is partitioned") as stopped:
            source.changes(1)
        assert "CDC_PLUGIN=pgoutput" in (stopped.value.hint or "")
        source.stop()
    with pytest.raises(SourceError, match="is partitioned"):
        source.watch(watched)
    name = f"{source.database.name}_{source.name}"
    assert source.database.fetch(
        "SELECT confirmed_flush_lsn < %s FROM pg_replication_slots WHERE slot_name = %s", lsn, name
    ) == [(True,)]


def test_a_table_that_becomes_a_partitioned_one_raises_an_alarm_while_nothing_is_written(
    source: PostgresSource,
) -> None:
    source.execute("CREATE TABLE events (id int PRIMARY KEY)")
    source.watch("events")
    name = f"{source.database.name}_{source.name}"
    routes = router_to(("events", [INSERT])).routes

    def problems() -> tuple[str, ...]:
        return read_postgres_status(source.database.url, name, None, routes=routes).problems

    assert problems() == ()
    source.execute("DROP TABLE events", PARTITIONED[0])
    (problem,) = problems()
    assert "table public.events: is partitioned" in problem


def test_what_is_no_table_of_the_application_does_not_come(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text)",
        "INSERT INTO items VALUES (1, 'a')",
        "CREATE MATERIALIZED VIEW seen AS SELECT * FROM items",
        "CREATE UNIQUE INDEX ON seen (id)",
        "CREATE TABLE copied AS SELECT * FROM items",
        "ALTER TABLE copied ADD PRIMARY KEY (id)",
        "CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)",
        "CREATE SEQUENCE numbers",
    )
    source.watch("*", schema="*")
    source.execute(
        "UPDATE items SET note = 'b'",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY seen",
        "REFRESH MATERIALIZED VIEW seen",
        "CREATE MATERIALIZED VIEW other AS SELECT * FROM items",
        "CREATE UNIQUE INDEX ON other (id)",
        "UPDATE items SET note = 'c'",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY other",
        "DROP MATERIALIZED VIEW seen",
        "VACUUM FULL items",
        "CLUSTER items USING items_pkey",
        "ALTER TABLE copied ALTER id TYPE bigint, ADD v text DEFAULT random()::text",
        "INSERT INTO scratch VALUES (1)",
        "ALTER TABLE scratch SET LOGGED",
        "SELECT nextval('numbers')",
        "UPDATE information_schema.sql_features SET comments = 'x' WHERE feature_id = 'B011'",
        "INSERT INTO scratch VALUES (2)",
    )
    assert [(change.table, change.event.value) for change in source.changes(3)] == [
        ("items", "update"),
        ("items", "update"),
        ("scratch", "insert"),
    ]


def test_a_materialized_view_in_the_place_of_a_table_is_not_taken_for_it(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    source.watch("*")
    source.execute("INSERT INTO items VALUES (1)")
    assert [change.table for change in source.changes(1)] == ["items"]
    source.execute("ALTER TABLE items RENAME TO old", "CREATE MATERIALIZED VIEW items AS SELECT id FROM old")
    with pytest.raises(
        SourceError, match=r"public\.items .* cannot be determined: it is a materialized view now"
    ):
        source.changes(1)


def test_no_name_is_made_up_for_a_column_that_was_renamed_twice(source: PostgresSource) -> None:
    """The name that the row's column had was there for a moment, in which the listener did not read it."""
    source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, note text, body text)",
        "ALTER TABLE items ALTER body SET STORAGE EXTERNAL",
        "INSERT INTO items VALUES (1, 'a', repeat('long ', 1000))",
    )
    source.watch("items")
    source.execute(
        "ALTER TABLE items RENAME body TO text",
        "UPDATE items SET note = 'b'",
        "ALTER TABLE items RENAME text TO words",
    )
    with pytest.raises(
        SourceError, match=r"public\.items at .* cannot be determined: body, words was altered"
    ):
        source.changes(1)


def test_rows_of_a_name_that_no_table_has_any_more_are_told_once(source: PostgresSource) -> None:
    # The table was renamed and renamed back while the listener was stopped: nobody saw it under that name.
    source.execute("CREATE TABLE items (id int PRIMARY KEY)", "CREATE TABLE others (id int)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (0)")
    source.changes(1)
    source.stop()
    source.execute(
        "INSERT INTO others VALUES (1)",
        "ALTER TABLE items RENAME TO items_for_a_while",
        "INSERT INTO items_for_a_while VALUES (1), (2)",
        "ALTER TABLE items_for_a_while RENAME TO items",
        "INSERT INTO items VALUES (3)",
    )
    with capture_logs() as logs:
        source.watch("items")
        assert [change.row["id"] for change in source.changes(1)] == [3]
    (told,) = [line for line in logs if line["event"] == "rows_of_tables_that_are_gone"]
    assert told["tables"] == ["public.items_for_a_while"]
    assert "CDC_PLUGIN=pgoutput" in told["hint"]


def test_the_copy_of_the_slot_that_orders_definitions_is_gone_at_once(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, note text)")
    source.watch("items")
    source.execute("INSERT INTO items VALUES (1)", "DELETE FROM items", "ALTER TABLE items ADD more text")
    assert [change.unavailable for change in source.changes(2)] == [(), ("note",)]
    assert source.database.fetch(SLOTS) == [(1,)]


def test_a_long_stream_of_other_tables_rows_lets_the_log_go(source: PostgresSource) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY)", "CREATE TABLE noise (id int)")
    source.watch("items")
    for number in range(20):
        source.execute(f"INSERT INTO noise VALUES ({number})")
    lsn = source.database.fetch("SELECT pg_current_wal_lsn()")[0][0]
    wait_until(lambda: source.is_past(lsn), what="the position to pass what nobody watches")
