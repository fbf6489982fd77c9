"""Every type of MySQL and MariaDB, as JSON that says what the server would, and what PostgreSQL's would."""

from __future__ import annotations

import base64
import json
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from reference.values import MARIADB_TYPES, MYSQL_NUMBERS, MYSQL_TEXTS, MYSQL_TIMES
from tests.support.mysql.source import MySQLSource
from tests.support.postgres.source import PostgresSource

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.support.mysql.source import MySQLDatabase

DOCUMENTS = [
    '{"a": [1, -2, 2.5, 1e300, null, true, false, "x\\"y"], "ü": {}, "": []}',
    "18446744073709551615",
    '"text"',
    "null",
    "[]",
    json.dumps(list(range(70000))),
    json.dumps({f"key {number}": "x" * 100 for number in range(1000)}),
]


def _cells(cases: list[tuple[str, str, Any]]) -> tuple[str, str, dict[str, Any]]:
    columns = ", ".join(f"c{place} {kind}" for place, (kind, _, _) in enumerate(cases))
    values = ", ".join(value for _, value, _ in cases)
    return columns, values, {f"c{place}": expected for place, (_, _, expected) in enumerate(cases)}


@pytest.mark.parametrize(
    "cases", [MYSQL_NUMBERS, MYSQL_TIMES, MYSQL_TEXTS], ids=["numbers", "times", "texts"]
)
def test_each_type_has_its_form(source: MySQLSource, cases: list[tuple[str, str, Any]]) -> None:
    columns, values, expected = _cells(cases)
    source.execute(f"CREATE TABLE t ({columns}) CHARACTER SET utf8mb4")
    source.watch()
    nulls = ", ".join("NULL" for _ in cases)
    source.execute(f"INSERT INTO t VALUES ({values}), ({nulls})", setting="sql_mode = 'ALLOW_INVALID_DATES'")
    found, empty = source.changes(2)
    assert found.after == expected
    assert empty.after == dict.fromkeys(expected)


def test_json_is_the_value_itself(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, a json)")
    source.watch()
    source.execute(*("INSERT INTO t (a) VALUES ('" + text.replace("\\", "\\\\") + "')" for text in DOCUMENTS))
    found = [each.row["a"] for each in source.changes(len(DOCUMENTS))]
    assert found == [json.loads(text) for text in DOCUMENTS]


def test_json_may_hold_values_of_sql_types(mysql_database: MySQLDatabase) -> None:
    with MySQLSource(mysql_database, name=mysql_database.name) as source:
        source.execute("CREATE TABLE t (a json)")
        source.watch()
        source.execute(
            "INSERT INTO t VALUES (JSON_ARRAY(12.50, CAST('2026-11-22 10:00:00.5' AS DATETIME(1)),"
            " CAST('2026-11-22' AS DATE), CAST('-10:00:00' AS TIME), x'00ff', CAST('' AS BINARY), b'101',"
            " ST_GeomFromText('POINT(1 1)'), 1e16, CAST('0000-00-00' AS DATE)))",
            *(
                f"INSERT INTO t VALUES (JSON_OBJECT('a', REPEAT(x'00ff', {size}), 'b', REPEAT('x', {size})))"
                for size in (28, 29, 57, 200, 40_000)
            ),
            setting="sql_mode = ''",
        )
        expected = [json.loads(text) for (text,) in source.database.fetch("SELECT a FROM t")]
        assert [each.row["a"] for each in source.changes(6)] == expected


def test_json_is_read_down_to_the_servers_deepest_level(mysql_source: MySQLSource) -> None:
    source, levels = mysql_source, 99
    source.execute("CREATE TABLE t (a json)")
    source.watch()
    lists, objects = "[" * levels + "[]" + "]" * levels, '{"a":' * levels + "{}" + "}" * levels
    source.execute(f"INSERT INTO t VALUES ('{lists}'), ('{objects}')")
    assert [each.row["a"] for each in source.changes(2)] == [json.loads(lists), json.loads(objects)]


def test_partial_updates_of_json_are_put_together(mysql_database: MySQLDatabase) -> None:
    with MySQLSource(mysql_database, name=mysql_database.name) as source:
        document = {"a": [1, 2, {"b c": 3}], "pad": "x" * 500, "n": 1, "ü.ü": {"y": 1}}
        source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, o json, a json)",
            f"INSERT INTO t VALUES (1, '[1]', '{json.dumps(document, ensure_ascii=False)}')",
        )
        source.watch()
        updates = [
            "JSON_SET(a, '$.a[2].\"b c\"', 'new')",
            "JSON_REMOVE(a, '$.a[0]')",
            "JSON_SET(a, '$.n', JSON_OBJECT('deep', JSON_ARRAY(1, 2)), '$.added', 7)",
            "JSON_ARRAY_INSERT(a, '$.a[0]', 'first')",
            "JSON_REPLACE(a, '$.\"ü.ü\".y', NULL)",
            "JSON_REMOVE(a, '$.pad')",
        ]
        expected = []
        for update in updates:
            source.execute(f"UPDATE t SET a = {update}", setting="binlog_row_value_options = 'PARTIAL_JSON'")
            expected.append(json.loads(source.database.fetch("SELECT a FROM t")[0][0]))
        found = source.changes(len(updates))
        assert [each.after and each.after["a"] for each in found] == expected
        assert [each.before and each.before["a"] for each in found] == [document, *expected[:-1]]
        assert all(each.row["o"] == [1] for each in found)


def test_mariadbs_own_types_are_told_by_its_catalogue(mariadb_database: MySQLDatabase) -> None:
    from tests.support.mysql.source import MySQLSource

    uuids = [
        "123e4567-e89b-12d3-a456-426655440000",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "1ec9414c-232a-6b00-b3c8-9e6bdeced846",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "12345678-1234-3234-0234-123456789abc",
    ]
    rng = random.Random(7)
    uuids += [str(UUID(int=rng.getrandbits(128), version=1 + place % 5)) for place in range(200)]
    addresses = ["::", "2001:db8::ff00:42:8329", "::ffff:192.0.2.1", "fe80::1", "1:2:3:4:5:6:7:8"]
    with MySQLSource(mariadb_database, name=mariadb_database.name) as source:
        source.execute(
            "CREATE TABLE t (id int PRIMARY KEY AUTO_INCREMENT, u uuid, i inet6, b binary(16), f inet4)"
        )
        source.watch()
        rows = [
            f"('{each}', '{addresses[place % 5]}', 'a', '192.0.2.{place % 250}')"
            for place, each in enumerate(uuids)
        ]
        source.execute(f"INSERT INTO t (u, i, b, f) VALUES {', '.join(rows)}")
        expected = source.database.fetch("SELECT CAST(u AS char), CAST(i AS char), CAST(f AS char) FROM t")
        found = source.changes(len(uuids))
        assert [(each.row["u"], each.row["i"], each.row["f"]) for each in found] == expected
        assert found[0].row["b"] == base64.b64encode(b"a".ljust(16, b"\0")).decode()
        columns, values, forms = _cells(MARIADB_TYPES)
        source.execute(f"CREATE TABLE documented ({columns})", f"INSERT INTO documented VALUES ({values})")
        assert source.changes(1)[0].after == forms


def test_mariadbs_compressed_columns_are_read(mariadb_database: MySQLDatabase) -> None:
    with MySQLSource(mariadb_database, name=mariadb_database.name) as source:
        source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text COMPRESSED, b varchar(2000) COMPRESSED, c blob COMPRESSED)"
            " CHARACTER SET latin1"
        )
        source.watch()
        long = "é" * 1000
        source.execute(f"INSERT INTO t VALUES (1, '{long}', '{long}', '{'x' * 999}'), (2, '', 'é', NULL)")
        first, second = source.changes(2)
        assert first.after == {
            "id": 1, "a": long, "b": long, "c": base64.b64encode(b"x" * 999).decode(),
        }  # fmt: skip
        assert second.after == {"id": 2, "a": "", "b": "é", "c": None}


def test_a_type_that_changes_while_the_listener_runs_has_its_new_form_at_once(source: MySQLSource) -> None:
    """Each keeps the layout of its bytes: the log says what they mean."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a varchar(10) CHARACTER SET latin1, b tinyint, c enum('x','y'),"
        " d set('a','b'), e binary(3), f int, g char(4) CHARACTER SET utf8mb4)"
    )
    source.watch()
    source.execute(
        "INSERT INTO t VALUES (1, 'é', -1, 'x', 'a,b', 'abc', 7, 'é')",
        "ALTER TABLE t MODIFY a varchar(10) CHARACTER SET cp1251, MODIFY b tinyint unsigned, MODIFY f int ZEROFILL,"
        " MODIFY c enum('new','y'), MODIFY d set('a','new'), MODIFY e char(3) CHARACTER SET latin1,"
        " MODIFY g char(16) CHARACTER SET latin1",
        "INSERT INTO t VALUES (2, 'Ж', 255, 'new', 'a,new', 'abc', 7, 'é')",
        setting="sql_mode = ''",
    )
    old, new = source.changes(2)
    abc = base64.b64encode(b"abc").decode()
    assert list(old.row.values()) == [1, "é", -1, "x", "a,b", abc, 7, "é"]
    assert list(new.row.values()) == [2, "Ж", 255, "new", "a,new", "abc", 7, "é"]


def test_geometry_is_the_servers_own_bytes(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (a geometry, b point)")
    source.watch()
    source.execute("INSERT INTO t VALUES (ST_GeomFromText('LINESTRING(0 0, 1 1)'), POINT(1, 2))")
    (change,) = source.changes(1)
    ((a, b),) = source.database.fetch("SELECT a, b FROM t")
    assert change.after == {"a": base64.b64encode(a).decode(), "b": base64.b64encode(b).decode()}


def test_generated_and_invisible_columns_are_there(source: MySQLSource) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, s int AS (id + 1) STORED, v int AS (id + 2) VIRTUAL,"
        " i int INVISIBLE DEFAULT 7)"
    )
    source.watch()
    source.execute("INSERT INTO t (id) VALUES (1)")
    (change,) = source.changes(1)
    assert change.after == {"id": 1, "s": 2, "v": 3, "i": 7}


_SAME = [
    ("integer", "integer", "7"),
    ("bigint", "bigint", "-9007199254740993"),
    ("numeric(10,2)", "decimal(10,2)", "-0.50"),
    ("real", "float", "0.1"),
    ("double precision", "double", "1e-7"),
    ("text", "text", "'Grüße \"x\" \\\\'"),
    ("date", "date", "'2026-11-22'"),
    ("timestamp", "datetime(6)", "'2026-11-22 10:00:00.5'"),
    ("timestamp", "datetime", "'2026-11-22 10:00:00'"),
    ("timestamptz", "timestamp(6) NULL", "'2026-11-22 10:00:00.123456'"),
    ("time", "time(6)", "'10:00:00.25'"),
    ("json", "json", '\'{"a": [1, null, "x"]}\''),
    ("bit(5)", "bit(5)", "b'00101'"),
]


def test_the_same_row_is_the_same_json_as_postgresqls(source: MySQLSource, database: Database) -> None:
    def row(place: int) -> str:
        return ", ".join(f"c{number} {case[place]}" for number, case in enumerate(_SAME))

    values = ", ".join(case[2] for case in _SAME)
    source.execute(f"CREATE TABLE t (id integer PRIMARY KEY, {row(1)})")
    source.watch()
    source.execute(f"INSERT INTO t VALUES (1, {values})")
    (ours,) = source.changes(1)
    with PostgresSource(database, "pgoutput") as postgres:
        postgres.execute(f"CREATE TABLE t (id integer PRIMARY KEY, {row(0)})")
        postgres.watch("t")
        postgres.execute(f"INSERT INTO t VALUES (1, {values.replace(chr(92) * 2, chr(92))})")
        (theirs,) = postgres.changes(1)
        assert ours.after == theirs.after
