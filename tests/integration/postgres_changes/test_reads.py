"""A row that a backfill reads looks as it did when the stream brought it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.waiting import Deadline
from listener.core.backfill import Chunk, ChunkRequest
from listener.router import BinlogRouter, EventType
from tests.integration.postgres_changes.test_types import _array_of, _cases_for

if TYPE_CHECKING:
    from cdc_tasks.changes import Change
    from tests.support.postgres.source import PostgresSource


def _read(source: PostgresSource, table: str, **options: Any) -> Chunk:
    """Return the next chunk of the table, once the stream has come to its place."""
    monitor: Any = source._monitor
    options = {"backfill": "a1b2", "schema": "public", "limit": 100} | options
    monitor.read_chunk(ChunkRequest(table=table, **options))
    deadline = Deadline(30)
    while True:
        batch = next(source._batches)
        source._take(batch)
        if batch.chunk is not None:
            return batch.chunk
        deadline.check("the chunk")


def _row(change: Change) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(change.to_json())["after"]
    assert row == change.after
    return row


def test_a_read_has_the_values_of_the_insert_whatever_the_types(source: PostgresSource) -> None:
    cases = _cases_for(source)
    cases += [
        (f"{type_}[]", _array_of(type_, text), None) for type_, text, _ in cases if not type_.endswith("[]")
    ]
    cases += [
        ("text", "\\N", None),
        ("text", "\\.", None),
        ("text", "a\tb\\\b\f\v\r\n", None),
        ("text", None, None),
    ]
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'very \"happy\"'); CREATE DOMAIN price AS numeric(10, 2)"
    )
    cases += [("mood", 'very "happy"', None), ("price", "1.5", None), ("price[]", "{1.5}", None)]
    columns = ", ".join(f"c{n} {type_}" for n, (type_, _, _) in enumerate(cases))
    source.execute(
        f"CREATE TABLE things (id int PRIMARY KEY, {columns}, twice int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    source.watch("things")
    values = ", ".join(["%s"] * len(cases))
    source.database.execute(
        f"INSERT INTO things VALUES (1, {values}); INSERT INTO things VALUES (2)",
        *[text for _, text, _ in cases],
    )
    inserts = source.changes(2)
    chunk = _read(source, "things")
    assert chunk.error is None, chunk.error
    assert [_row(each) for each in chunk.rows] == [_row(each) for each in inserts]
    first, second = chunk.rows
    for name in ("schema", "table", "before", "unavailable"):
        assert getattr(first, name) == getattr(inserts[0], name)
    assert (first.event.value, first.changed("c1")) == ("read", True)
    assert first.committed_at == chunk.at == second.committed_at
    assert first.to_json(("id",)) != first.to_json()
    again = _read(source, "things")
    assert [each.id for each in again.rows] == [first.id, second.id]
    other = _read(source, "things", backfill="c3d4")
    assert {each.id for each in other.rows}.isdisjoint({first.id, second.id})
    assert (chunk.found, chunk.is_end, chunk.last) == (2, True, ("2",))


def test_rows_that_changed_between_the_marks_are_left_out(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE things (id int PRIMARY KEY, v text);"
        "INSERT INTO things SELECT g, 'old' FROM generate_series(1, 9) g"
    )
    source.watch("things")
    window: Any = source._monitor._window  # type: ignore[union-attr]
    select = window._reader._select

    def disturbed(*arguments: Any) -> Any:
        found = select(*arguments)
        source.execute(
            "UPDATE things SET v = 'new' WHERE id = 1; DELETE FROM things WHERE id = 2;"
            "UPDATE things SET id = 30 WHERE id = 3; INSERT INTO things VALUES (40, 'new')"
        )
        return found

    window._reader._select = disturbed
    chunk = _read(source, "things")
    assert [change.row["id"] for change in source.changes(4)] == [1, 2, 30, 40]
    assert [each.row["id"] for each in chunk.rows] == [4, 5, 6, 7, 8, 9]
    assert chunk.found == 9
    window._reader._select = lambda *arguments: (select(*arguments), source.execute("TRUNCATE things"))[0]
    assert _read(source, "things").rows == []


def test_what_was_muted_between_the_marks_is_read_again(source: PostgresSource) -> None:
    source.execute("CREATE TABLE things (id int PRIMARY KEY, v text); INSERT INTO things VALUES (1, 'old')")
    source.watch("things")
    window: Any = source._monitor._window  # type: ignore[union-attr]
    select = window._reader._select

    def disturbed(*arguments: Any) -> Any:
        found = select(*arguments)
        source.execute(
            "SELECT pg_logical_emit_message(true, 'cdc_tasks', '{\"mute\": true}'); UPDATE things SET v = 'muted'"
        )
        return found

    window._reader._select = disturbed
    assert _read(source, "things").is_torn
    window._reader._select = select
    assert [each.row["v"] for each in _read(source, "things").rows] == ["muted"]


def test_wide_rows_come_in_smaller_chunks(source: PostgresSource) -> None:
    source.execute(
        "CREATE TABLE things (id int PRIMARY KEY, v text);"
        "INSERT INTO things SELECT g, repeat('x', 10000) FROM generate_series(1, 20) g"
    )
    source.watch("things")
    found: list[int] = []
    last, is_end = None, False
    while not is_end:
        chunk = _read(source, "things", after=last, max_bytes=45_000)
        assert len(chunk.rows) <= 5
        found += [each.row["id"] for each in chunk.rows]
        last, is_end = chunk.last, chunk.is_end
    assert found == list(range(1, 21))


def test_a_partitioned_table_is_read_as_a_whole_and_its_partition_is_refused(
    pgoutput: PostgresSource,
) -> None:
    pgoutput.execute(
        "CREATE TABLE things (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE few PARTITION OF things FOR VALUES FROM (0) TO (5);"
        "CREATE TABLE many PARTITION OF things FOR VALUES FROM (5) TO (100);"
        "INSERT INTO things SELECT g, 'old' FROM generate_series(1, 9) g"
    )
    pgoutput.watch("things")
    window: Any = pgoutput._monitor._window  # type: ignore[union-attr]
    select = window._reader._select
    window._reader._select = lambda *arguments: (
        select(*arguments),
        pgoutput.execute("UPDATE things SET v = 'new' WHERE id IN (2, 7)"),
    )[0]
    chunk = _read(pgoutput, "things")
    assert [(each.table, each.row["id"]) for each in chunk.rows] == [
        ("things", n) for n in (1, 3, 4, 5, 6, 8, 9)
    ]
    error = _read(pgoutput, "few").error
    assert error is not None
    assert (error.code, error.hint) == ("backfill_partition", "Name public.things instead.")


def test_a_read_has_the_columns_that_the_stream_sends_and_needs_the_key_among_them(
    pgoutput: PostgresSource,
) -> None:
    pgoutput.execute(
        "CREATE TABLE things (id int PRIMARY KEY, v text, secret text);"
        "CREATE TABLE others (id int NOT NULL UNIQUE, v text)"
    )
    router = BinlogRouter()
    router.register("public", "*", EventType.INSERT, "a.task", columns=["v"])
    pgoutput.watch_routes(router, column_lists=True)
    pgoutput.execute("INSERT INTO things VALUES (1, 'v', 'secret')")
    (insert,) = pgoutput.changes(1)
    (read,) = _read(pgoutput, "things").rows
    assert _row(read) == _row(insert) == {"id": 1, "v": "v"}
    error = _read(pgoutput, "others").error
    assert error is not None
    assert error.code == "backfill_no_key"
    assert error.message == "The stream does not send id, the key by which public.others is read."
