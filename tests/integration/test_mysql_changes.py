"""What comes out of a binlog: each kind of statement, on MariaDB and on MySQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from listener.core.source import GapError, SourceError
from tests.support.mysql.source import MySQLSource

if TYPE_CHECKING:
    from pathlib import Path

    from cdc_tasks.changes import Change
    from tests.support.mysql.source import MySQLDatabase

_TABLE = "CREATE TABLE people (id integer PRIMARY KEY, name varchar(50), age integer)"


def _seen(changes: list[Change]) -> list[tuple[str, str, object, object]]:
    return [(each.table, each.event.value, each.before, each.after) for each in changes]


def _person(number: int, name: str | None = "Ada", age: int | None = None) -> dict[str, object]:
    return {"id": number, "name": name, "age": age}


def test_rows_come_with_all_their_columns_before_and_after(source: MySQLSource) -> None:
    source.execute(_TABLE)
    source.watch("people")
    source.execute(
        "INSERT INTO people VALUES (1, 'Ada', NULL), (2, NULL, 36)",
        "UPDATE people SET age = 37 WHERE id = 2",
        "DELETE FROM people WHERE id = 1",
    )
    assert _seen(source.changes(4)) == [
        ("people", "insert", None, _person(1)),
        ("people", "insert", None, _person(2, None, 36)),
        ("people", "update", _person(2, None, 36), _person(2, None, 37)),
        ("people", "delete", _person(1), None),
    ]


def test_a_change_says_where_and_when_it_was_committed(source: MySQLSource) -> None:
    source.execute(_TABLE)
    source.watch("people")
    source.execute("INSERT INTO people (id) VALUES (1), (2)", "INSERT INTO people (id) VALUES (3)")
    first, second, third = source.changes(3)
    assert first.position.rpartition(":")[0] == second.position.rpartition(":")[0]
    assert (first.position[-2:], second.position[-2:], third.position[-2:]) == (":0", ":1", ":0")
    assert len({first.id, second.id, third.id}) == 3
    ((seconds,),) = source.database.fetch("SELECT unix_timestamp()")
    assert abs(first.committed_at.timestamp() - int(seconds)) < 900


def test_replace_and_on_duplicate_key_come_as_what_they_did(source: MySQLSource) -> None:
    source.execute(_TABLE, "INSERT INTO people VALUES (1, 'Ada', 1)")
    source.watch("people")
    source.execute(
        "INSERT INTO people VALUES (1, 'x', 2) ON DUPLICATE KEY UPDATE age = 5",
        "REPLACE INTO people VALUES (1, 'Ada', 6), (2, 'Bob', 7)",
    )
    found = source.changes(3)
    assert [(each.event.value, each.row["age"]) for each in found] == [
        ("update", 5),
        ("update", 6),
        ("insert", 7),
    ]


def test_load_data_comes_as_rows(source: MySQLSource, tmp_path: Path) -> None:
    source.execute(_TABLE, "SET GLOBAL local_infile = ON")
    file = tmp_path / "people.tsv"
    file.write_text("1\tAda\t36\n2\tBob\t\\N\n")
    source.watch("people")
    source.execute(f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE people")
    assert [each.after for each in source.changes(2)] == [_person(1, "Ada", 36), _person(2, "Bob")]


def test_only_watched_tables_are_reported_and_others_do_not_move_the_ordinals(source: MySQLSource) -> None:
    source.execute(_TABLE, "CREATE TABLE noise (id integer PRIMARY KEY)")
    source.watch("people")
    source.execute(
        "BEGIN",
        "INSERT INTO noise VALUES (1), (2)",
        "INSERT INTO people (id) VALUES (1)",
        "COMMIT",
    )
    (change,) = source.changes(1)
    assert change.position.endswith(":2")


def test_truncate_comes_as_one_change_of_the_table(source: MySQLSource) -> None:
    source.execute(_TABLE, "CREATE TABLE `od``d näme` (id int)")
    source.watch()
    source.execute(
        "INSERT INTO people (id) VALUES (1)",
        "TRUNCATE people",
        f"/* why not */ truncate table\n{source.database.name} . `people`;",
        "TRUNCATE TABLE `od``d näme`",
    )
    found = source.changes(4)
    assert [(each.table, each.event.value) for each in found[1:]] == [
        ("people", "truncate"),
        ("people", "truncate"),
        ("od`d näme", "truncate"),
    ]
    assert found[1].after is None
    assert found[1].schema == source.database.name


def test_definitions_that_change_in_mid_stream_are_followed(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
    source.watch()
    source.execute(
        "INSERT INTO t VALUES (1, 1)",
        "ALTER TABLE t ADD COLUMN b varchar(10) FIRST",
        "INSERT INTO t VALUES ('b', 2, 2)",
        "ALTER TABLE t RENAME COLUMN a TO c",
        "INSERT INTO t VALUES ('b', 3, 3)",
        "ALTER TABLE t MODIFY c varchar(20), DROP COLUMN b",
        "INSERT INTO t VALUES (4, 'four')",
        "RENAME TABLE t TO u",
        "INSERT INTO u VALUES (5, 'five')",
    )
    assert [(each.table, each.after) for each in source.changes(5)] == [
        ("t", {"id": 1, "a": 1}),
        ("t", {"b": "b", "id": 2, "a": 2}),
        ("t", {"b": "b", "id": 3, "c": 3}),
        ("t", {"id": 4, "c": "four"}),
        ("u", {"id": 5, "c": "five"}),
    ]


def test_create_table_as_select_comes_as_rows(source: MySQLSource) -> None:
    source.watch()
    source.execute("CREATE TABLE made AS SELECT 1 AS one UNION SELECT 2")
    assert [each.row["one"] for each in source.changes(2)] == [1, 2]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO people (id) VALUES (1)",
        "/* hm */ REPLACE INTO people (id) VALUES (1)",
        "UPDATE people SET age = 3",
        "CREATE TABLE copy AS SELECT * FROM people",
    ],
)
def test_a_statement_that_was_not_logged_as_rows_stops_the_listener(
    source: MySQLSource, statement: str
) -> None:
    source.execute(_TABLE, "INSERT INTO people (id) VALUES (77)")
    source.watch("people")
    source.execute(statement, setting="binlog_format = 'STATEMENT'")
    with pytest.raises(GapError, match="logged as a statement") as caught:
        source.changes(1)
    assert "binlog_format" in (caught.value.hint or "")
    source.stop()
    source.watch("people", accept_gap=True)
    source.execute("INSERT INTO people (id) VALUES (3)")
    assert [each.row["id"] for each in source.changes(1)] == [3]


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
def test_columns_that_a_row_image_leaves_out_are_unavailable_and_not_null(
    source: MySQLSource, image: str
) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b text)", "INSERT INTO t VALUES (1, 1, 'b')")
    source.watch()
    source.execute("UPDATE t SET a = 2", "DELETE FROM t", setting=f"binlog_row_image = '{image}'")
    update, delete = source.changes(2)
    minimal = image == "MINIMAL"
    assert update.before == ({"id": 1} if minimal else {"id": 1, "a": 1})
    assert update.after == {"id": 1, "a": 2}
    assert update.unavailable == (("a", "b") if minimal else ("b",))
    assert (update.changed("a"), update.changed("b"), update.changed("id")) == (
        None if minimal else True,
        False,
        False,
    )
    assert delete.before == ({"id": 1} if minimal else {"id": 1, "a": 2})
    assert b'"unavailable":["b"]' in update.to_json(("id", "b"))


def test_rows_without_the_names_of_their_columns_stop_the_listener(any_mysql: MySQLDatabase) -> None:
    with MySQLSource(any_mysql, name=any_mysql.name) as source:
        source.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE noise (id int)")
        source.watch("t")
        source.execute("SET GLOBAL binlog_row_metadata = 'MINIMAL'")
        try:
            source.execute("INSERT INTO noise VALUES (1)", "INSERT INTO t VALUES (1)")
        finally:
            source.execute("SET GLOBAL binlog_row_metadata = 'FULL'")
        with pytest.raises(SourceError, match="binlog_row_metadata") as caught:
            source.changes(1)
        setting = "SET GLOBAL" if any_mysql.is_mariadb else "SET PERSIST"
        assert f"{setting} binlog_row_metadata = FULL;" in (caught.value.hint or "")


def test_a_row_larger_than_a_packet_comes_whole(source: MySQLSource) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a longtext)", "SET GLOBAL max_allowed_packet = 1073741824"
    )
    source.watch()
    for size in (16_777_100, 16_777_215 - 60, 40_000_000):
        source.execute(f"INSERT INTO t VALUES ({size}, repeat('x', {size}))")
    for size in (16_777_100, 16_777_215 - 60, 40_000_000):
        (change,) = source.changes(1)
        assert len(change.row["a"]) == size


def test_cascaded_deletes_are_in_the_log_only_where_the_server_does_them_itself(source: MySQLSource) -> None:
    """What docs/mysql.md says: MariaDB's and the older MySQL's InnoDB deletes below the binlog."""
    source.execute(
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY, a_id int, FOREIGN KEY (a_id) REFERENCES a (id) ON DELETE CASCADE)",
        "INSERT INTO a VALUES (1)",
        "INSERT INTO b VALUES (1, 1)",
    )
    source.watch()
    source.execute("DELETE FROM a")
    expected = ["a"] if source.database.is_mariadb else ["b", "a"]
    assert [each.table for each in source.changes(len(expected))] == expected
