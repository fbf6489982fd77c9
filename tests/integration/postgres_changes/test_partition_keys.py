"""Partitions with a key of their own: what the log says of an old row is not what their root's key would say."""

from __future__ import annotations

import pytest

from tests.support.postgres.source import PostgresSource, rows_of

EVENTS = "CREATE TABLE events (id int, year int, code text NOT NULL, body text{}) PARTITION BY LIST (year)"
PARTITION = "CREATE TABLE events_2026 PARTITION OF events FOR VALUES IN (2026)"
BY_CODE = (
    "CREATE UNIQUE INDEX by_code ON events_2026 (code)",
    "ALTER TABLE events_2026 REPLICA IDENTITY USING INDEX by_code",
)


@pytest.mark.parametrize(
    ("root_key", "own_key", "old"),
    [
        ("", ["ALTER TABLE events_2026 ADD PRIMARY KEY (id)"], {"id": 1}),
        (", PRIMARY KEY (id, year)", BY_CODE, {"code": "a"}),
    ],
)
def test_an_old_row_has_the_key_that_its_partition_has(
    pgoutput: PostgresSource, root_key: str, own_key: list[str], old: dict[str, object]
) -> None:
    pgoutput.execute(EVENTS.format(root_key), PARTITION, *own_key)
    pgoutput.watch("events")
    pgoutput.execute(
        "INSERT INTO events VALUES (1, 2026, 'a', NULL)",
        "UPDATE events SET id = 2, code = 'b'",
        "UPDATE events SET id = 1, code = 'a'",
        "DELETE FROM events",
    )
    _, first, _, deleted = pgoutput.changes(4)
    missing = tuple(name for name in ("id", "year", "code", "body") if name not in old)
    after = {"id": 2, "year": 2026, "code": "b", "body": None}
    assert rows_of([first, deleted]) == [("update", old, after, missing), ("delete", old, None, missing)]
    assert [first.changed(name) for name in ("id", "code", "year")] == [
        True if name in old else None for name in ("id", "code", "year")
    ]


def test_an_old_row_of_which_the_root_does_not_say_that_it_is_whole_has_no_false_null(
    pgoutput: PostgresSource,
) -> None:
    pgoutput.execute(EVENTS.format(""), PARTITION, "ALTER TABLE events_2026 REPLICA IDENTITY FULL")
    pgoutput.watch("events")
    pgoutput.execute("INSERT INTO events VALUES (1, 2026, 'a', NULL)", "DELETE FROM events")
    _, deleted = pgoutput.changes(2)
    assert deleted.before == {"id": 1, "year": 2026, "code": "a"}
