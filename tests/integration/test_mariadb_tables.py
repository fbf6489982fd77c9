"""What MariaDB's log leaves open about a table, and its catalogue says."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from listener.core.findings import State
from listener.core.source import SourceError
from listener.mysql.check import find_in_tables
from listener.mysql.client.connection import connect
from listener.router import BinlogRouter, EventType
from tests.support.mysql.source import MySQLSource

if TYPE_CHECKING:
    from cdc_tasks.changes import Change

_OLD_FORMAT = "mysql56_temporal_format"


@pytest.fixture
def source(mariadb_source: MySQLSource) -> MySQLSource:
    return mariadb_source


def _seen(changes: list[Change]) -> list[tuple[str, Any, Any]]:
    return [(each.event.value, each.before, each.after) for each in changes]


def _execute_in_old_format(source: MySQLSource, statement: str) -> None:
    source.execute(f"SET GLOBAL {_OLD_FORMAT} = OFF")
    try:
        source.execute(statement)
    finally:
        source.execute(f"SET GLOBAL {_OLD_FORMAT} = ON")


_MOMENTS = [
    "0000-00-00 00:00:00",
    "1000-01-01 00:00:00.000001",
    "2026-02-31 10:00:00.5",
    "2026-11-22 10:00:00",
    "2026-11-22 23:59:59.999999",
    "9999-12-31 23:59:59.123456",
]
_CLOCKS = [
    "00:00:00",
    "-00:00:00.000001",
    "10:00:00.25",
    "-10:00:00.123456",
    "838:59:59.999999",
    "-838:59:59",
]
_STAMPS = [
    "1970-01-01 00:00:01",
    "2026-11-22 10:00:00.123456",
    "2038-01-19 03:14:07.999999",
    "0000-00-00 00:00:00",
]


def test_temporal_types_in_the_old_format_are_as_select_has_them(source: MySQLSource) -> None:
    digits = range(7)
    columns = [f"{kind}{place}" for kind in ("d", "s", "t") for place in digits]
    types = [
        *(f"d{place} datetime({place})" for place in digits),
        *(f"s{place} timestamp({place}) NULL" for place in digits),
        *(f"t{place} time({place})" for place in digits),
    ]
    _execute_in_old_format(source, f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(types)}, behind text)")
    source.watch()
    rows = [
        ", ".join(f"'{value}'" for value in (moment, stamp, clock) for _ in digits)
        for moment, stamp, clock in zip(_MOMENTS, (*_STAMPS, *_STAMPS), _CLOCKS, strict=False)
    ]
    setting = "sql_mode = 'ALLOW_INVALID_DATES'"
    source.execute(
        *(f"INSERT INTO t VALUES ({place}, {row}, 'x')" for place, row in enumerate(rows)), setting=setting
    )
    found = source.changes(len(rows))
    shown = source.database.fetch(
        f"SELECT id, {', '.join(f'CAST({name} AS CHAR)' for name in columns)} FROM t"
    )
    for change, (number, *values) in zip(found, shown, strict=True):
        assert (change.row["id"], change.row["behind"]) == (number, "x")
        assert [_plain(change.row[name], name) for name in columns] == values


def _plain(text: str, column: str) -> str:
    """Return the server's own form of what we say: with a space, without a zone, with as many digits as declared."""
    text = text.replace("T", " ").removesuffix("+00:00")
    whole, _, fraction = text.partition(".")
    digits = int(column[1])
    return f"{whole}.{fraction.ljust(6, '0')[:digits]}" if digits else whole


def test_the_old_format_is_refused_where_the_table_was_changed_since(source: MySQLSource) -> None:
    _execute_in_old_format(source, "CREATE TABLE t (id int PRIMARY KEY, a datetime(3))")
    _execute_in_old_format(source, "CREATE TABLE noise (a datetime(3))")
    source.watch("t")
    source.stop()
    source.execute(
        "INSERT INTO noise VALUES ('2026-11-22 10:00:00.5')",
        "ALTER TABLE noise MODIFY a datetime(6)",
        "INSERT INTO t VALUES (1, '2026-11-22 10:00:00.5')",
        "ALTER TABLE t MODIFY a datetime(6)",
        "INSERT INTO t VALUES (2, '2026-11-22 10:00:00.5')",
    )
    source.watch("t")
    with pytest.raises(SourceError, match="how many digits column a had") as caught:
        source.changes(1)
    assert "--accept-gap" in (caught.value.hint or "")
    source.stop()
    source.watch("t", accept_gap=True)
    assert [each.row for each in source.changes(1)] == [{"id": 2, "a": "2026-11-22T10:00:00.500000"}]


_IMPLICIT = "CREATE TABLE t (id int PRIMARY KEY, a text) WITH SYSTEM VERSIONING"
_EXPLICIT = (
    "CREATE TABLE t (id int PRIMARY KEY, a text, since timestamp(6) GENERATED ALWAYS AS ROW START,"
    " until timestamp(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (since, until)) WITH SYSTEM VERSIONING"
)
_WITHOUT_KEY = "CREATE TABLE t (id int, a text) WITH SYSTEM VERSIONING"
_PARTITIONED = (
    "CREATE TABLE t (id int, a text) WITH SYSTEM VERSIONING PARTITION BY SYSTEM_TIME LIMIT 2 PARTITIONS 3"
)


@pytest.mark.parametrize("image", ["FULL", "NOBLOB", "MINIMAL"])
@pytest.mark.parametrize(
    "definition",
    [_IMPLICIT, _EXPLICIT, _WITHOUT_KEY, _PARTITIONED],
    ids=["implicit", "explicit", "keyless", "partitioned"],
)
def test_a_table_with_system_versioning_comes_as_its_rows_of_now(
    source: MySQLSource, definition: str, image: str
) -> None:
    source.execute(definition)
    source.watch()
    source.execute(
        "INSERT INTO t (id, a) VALUES (1, 'a'), (2, 'b')",
        "UPDATE t SET a = 'c'",
        "UPDATE t SET id = 3 WHERE id = 2",
        "DELETE FROM t WHERE id = 1",
        "DELETE HISTORY FROM t",
        "INSERT INTO t (id, a) VALUES (4, 'd')",
        setting=f"binlog_row_image = '{image}'",
    )
    found = source.changes(7)
    assert source.rest() == []
    assert [(each.event.value, (each.after or each.before or {}).get("id")) for each in found] == [
        ("insert", 1),
        ("insert", 2),
        ("update", 1),
        ("update", 2),
        ("update", 3),
        ("delete", 1),
        ("insert", 4),
    ]
    columns = {"id", "a", "since", "until"} if definition is _EXPLICIT else {"id", "a"}
    assert found[0].after is not None
    assert found[0].after.keys() == columns
    if image == "FULL":
        assert found[5].before is not None
        assert found[5].before.keys() == columns
        assert found[5].before["a"] == "c"
    assert all(not {"row_start", "row_end"} & set(each.unavailable) for each in found)


def test_history_that_an_application_writes_by_itself_does_not_come(source: MySQLSource) -> None:
    source.execute(_IMPLICIT)
    source.watch()
    source.execute(
        "SET @@system_versioning_insert_history = ON",
        "INSERT INTO t (id, a, row_start, row_end) VALUES (1, 'old', '2020-01-01', '2021-01-01')",
        "INSERT INTO t (id, a) VALUES (1, 'new')",
        "REPLACE INTO t (id, a) VALUES (1, 'newer')",
    )
    assert _seen(source.changes(3)) == [
        ("insert", None, {"id": 1, "a": "new"}),
        ("delete", {"id": 1, "a": "new"}, None),
        ("insert", None, {"id": 1, "a": "newer"}),
    ]


def test_versioning_that_is_switched_on_and_off_while_the_listener_runs_is_followed(
    source: MySQLSource,
) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, row_start timestamp(6), row_end timestamp(6))")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    source.watch()
    moments = {"row_start": "2026-11-22T10:00:00+00:00", "row_end": "2026-11-23T10:00:00+00:00"}
    source.execute(
        "INSERT INTO t VALUES (1, '2026-11-22 10:00:00', '2026-11-23 10:00:00')",
        "INSERT INTO u VALUES (1)",
        "ALTER TABLE u ADD SYSTEM VERSIONING",
        "UPDATE u SET id = 2",
        "SET @@system_versioning_alter_history = KEEP",
        "ALTER TABLE u DROP SYSTEM VERSIONING",
        "DELETE FROM u WHERE id = 2",
    )
    assert _seen(source.changes(4)) == [
        ("insert", None, {"id": 1, **moments}),
        ("insert", None, {"id": 1}),
        ("update", {"id": 1}, {"id": 2}),
        ("delete", {"id": 2}, None),
    ]


def test_a_part_of_an_applications_period_comes_as_the_rows_that_it_leaves(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int, a date, b date, PERIOD FOR valid (a, b))")
    source.execute("INSERT INTO t VALUES (1, '2026-01-01', '2026-12-01')")
    source.watch()
    source.execute("UPDATE t FOR PORTION OF valid FROM '2026-03-01' TO '2026-05-01' SET id = 2")
    found = source.changes(3)
    assert [each.event.value for each in found] == ["update", "insert", "insert"]
    rows = [(each.row["id"], each.row["a"], each.row["b"]) for each in found]
    assert sorted(rows) == source.database.fetch(
        "SELECT id, CAST(a AS CHAR), CAST(b AS CHAR) FROM t ORDER BY 1, 2"
    )


def test_a_sequence_and_a_view_are_no_tables(source: MySQLSource) -> None:
    source.execute("CREATE SEQUENCE s", "CREATE TABLE t (id int DEFAULT NEXTVAL(s) PRIMARY KEY, a int)")
    source.execute("CREATE VIEW v AS SELECT * FROM t")
    source.watch()
    source.execute(
        "DO NEXTVAL(s)", "DO SETVAL(s, 5000)", "ALTER SEQUENCE s RESTART 7", "INSERT INTO v (a) VALUES (1)"
    )
    source.execute("CREATE SEQUENCE s2", "DROP SEQUENCE s2")
    source.execute("INSERT INTO t (a) VALUES (2)")
    assert [(each.table, each.row["a"]) for each in source.changes(2)] == [("t", 1), ("t", 2)]


def test_the_hash_of_a_unique_text_is_not_in_the_rows(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b blob, UNIQUE (a), UNIQUE (b))")
    source.execute("CREATE TABLE u (id int PRIMARY KEY, DB_ROW_HASH_1 bigint unsigned)")
    source.watch()
    source.execute(
        "INSERT INTO t VALUES (1, 'a', NULL)", "UPDATE t SET a = 'b'", "INSERT INTO u VALUES (1, 7)"
    )
    row = {"id": 1, "a": "a", "b": None}
    assert _seen(source.changes(3)) == [
        ("insert", None, row),
        ("update", row, {**row, "a": "b"}),
        ("insert", None, {"id": 1, "DB_ROW_HASH_1": 7}),
    ]


def test_types_that_the_log_does_not_tell_are_asked_for_when_a_table_was_altered(source: MySQLSource) -> None:
    number = "123e4567-e89b-12d3-a456-426655440000"
    bytes_of_it = bytes.fromhex(number.replace("-", ""))
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, u binary(16), d longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,"
        " a binary(4), l longtext CHARACTER SET latin1)"
    )
    source.watch()
    plain = f"x'{bytes_of_it.hex()}', '{{\"a\": 1}}', 'abcd', '{{\"é\": 1}}'"
    typed = f"'{number}', '{{\"a\": 1}}', '97.98.99.100', '{{\"é\": 1}}'"
    source.execute(f"INSERT INTO t VALUES (1, {plain})")
    (before,) = source.changes(1)
    assert before.row == {
        "id": 1,
        "u": base64.b64encode(bytes_of_it).decode(),
        "d": '{"a": 1}',
        "a": base64.b64encode(b"abcd").decode(),
        "l": '{"é": 1}',
    }
    source.execute(
        "ALTER TABLE t MODIFY u uuid", "ALTER TABLE t MODIFY d json", "ALTER TABLE t MODIFY a inet4",
        "ALTER TABLE t ADD CHECK (json_valid(l))", f"INSERT INTO t VALUES (2, {typed})",
    )  # fmt: skip
    (after,) = source.changes(1)
    assert after.row == {"id": 2, "u": number, "d": {"a": 1}, "a": "97.98.99.100", "l": {"é": 1}}
    source.execute(
        "ALTER TABLE t MODIFY u binary(16), MODIFY d longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        f"INSERT INTO t VALUES (3, x'{bytes_of_it.hex()}', '{{\"a\": 1}}', '1.2.3.4', '[]')",
        "UPDATE t SET id = 4 WHERE id = 3",
    )
    back, *_ = source.changes(2)
    assert (back.row["u"], back.row["d"]) == (base64.b64encode(bytes_of_it).decode(), '{"a": 1}')


def test_json_may_be_in_any_character_set(source: MySQLSource) -> None:
    charsets = ("utf8mb4", "latin1", "ucs2", "utf32", "sjis")
    columns = ", ".join(
        f"{name} longtext CHARACTER SET {name} CHECK (json_valid({name}))" for name in charsets
    )
    source.execute(f"CREATE TABLE t ({columns}, short varchar(50) CHECK (json_valid(short)))")
    source.watch()
    texts = {"latin1": '{"é": ["ü"]}', "sjis": '{"日本": ["語"]}'}
    values = [texts.get(name, '{"é": ["日本"]}') for name in charsets]
    source.execute(f"INSERT INTO t VALUES ({', '.join(f'{value!r}' for value in values)}, '[1]')")
    (change,) = source.changes(1)
    assert list(change.row.values()) == [*map(json.loads, values), "[1]"]


def test_a_table_that_is_swapped_for_another_is_asked_for_again(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (a binary(16))", "CREATE TABLE u (a uuid)")
    source.watch("t")
    source.execute(
        "INSERT INTO t VALUES ('x')", "RENAME TABLE t TO old, u TO t", "INSERT INTO t VALUES (uuid())"
    )
    first, second = source.changes(2)
    ((expected,),) = source.database.fetch("SELECT CAST(a AS CHAR) FROM t")
    assert (first.row["a"], second.row["a"]) == (base64.b64encode(b"x".ljust(16, b"\0")).decode(), expected)


def test_versions_that_go_by_transactions_are_refused_with_what_mends_it(source: MySQLSource) -> None:
    """MariaDB logs their changes as statements, whatever binlog_format says."""
    source.execute(
        "CREATE TABLE `a``b` (id int PRIMARY KEY, s bigint unsigned GENERATED ALWAYS AS ROW START,"
        " e bigint unsigned GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (s, e)) WITH SYSTEM VERSIONING"
    )
    with pytest.raises(SourceError, match="system versioning by transaction ids") as caught:
        source.watch()
    source.stop()
    _, _, statements = (caught.value.hint or "").partition("\n")
    source.execute(*statements.removesuffix(";").split(";\n"))
    source.watch()
    source.execute("INSERT INTO `a``b` VALUES (1)", "UPDATE `a``b` SET id = 2", "DELETE FROM `a``b`")
    assert [each.event.value for each in source.changes(3)] == ["insert", "update", "delete"]


def test_check_says_of_a_view_and_a_sequence_that_no_change_comes(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int)", "CREATE VIEW v AS SELECT * FROM t", "CREATE SEQUENCE s")
    router = BinlogRouter()
    schema = source.database.name
    for table in ("t", "v", "s"):
        router.register(schema, table, EventType.ALL, f"a.{table}")
    with closing(connect(source.database.url)) as connection:
        found = [(each.found, each.state) for each in find_in_tables(connection, router.routes)]
    assert found == [
        ("found", State.OK),
        ("is a view: the log has no changes of it", State.WARNING),
        ("is a sequence: the log has no changes of it", State.WARNING),
    ]
