"""Rows that hold a part of their columns, or none: binlog_row_image is not FULL."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pymysql
import pytest

from listener.mysql.client.connection import connect
from listener.mysql.tables.old_values import find_in_old_values
from listener.router import BinlogRouter, became, changed

if TYPE_CHECKING:
    from tests.support.mysql.source import MySQLDatabase, MySQLSource

_MINIMAL = "binlog_row_image = 'MINIMAL'"


def _compression_of(database: MySQLDatabase) -> str:
    name = "GLOBAL log_bin_compress" if database.is_mariadb else "GLOBAL binlog_transaction_compression"
    return f"SET {name} = "


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_row_without_columns_is_one_change(source: MySQLSource, compressed: bool) -> None:
    source.execute(
        "CREATE TABLE t (a int NOT NULL DEFAULT 3 PRIMARY KEY, b text)", "CREATE TABLE u (id int PRIMARY KEY)"
    )
    source.watch()
    if compressed:
        source.execute(_compression_of(source.database) + "ON")
    try:
        source.execute(
            "BEGIN",
            "INSERT INTO u VALUES (1)",
            "INSERT INTO t VALUES ()",
            "INSERT INTO u VALUES (2)",
            "UPDATE t SET b = 'x'",
            "DELETE FROM t",
            "COMMIT",
            "INSERT IGNORE INTO t () VALUES ()",
            "INSERT INTO u VALUES (3)",
            setting=_MINIMAL,
        )
    finally:
        source.execute(_compression_of(source.database) + "OFF")
    found = source.changes(7)
    assert [(each.table, each.event.value) for each in found] == [
        ("u", "insert"),
        ("t", "insert"),
        ("u", "insert"),
        ("t", "update"),
        ("t", "delete"),
        ("t", "insert"),
        ("u", "insert"),
    ]
    assert [each.position.rpartition(":")[2] for each in found] == ["0", "1", "2", "3", "4", "0", "0"]
    assert found[1].after == {}
    assert found[1].unavailable == ("a", "b")
    assert b'"after":{},"unavailable":["a"]' in found[1].to_json(("a",))
    assert (found[3].before, found[3].after) == ({"a": 3}, {"a": 3, "b": "x"})


def test_mysql_logs_a_row_without_columns_alone_in_its_event(mysql_source: MySQLSource) -> None:
    source = mysql_source
    source.execute("CREATE TABLE t (a int, b int DEFAULT 3)")
    source.watch()
    source.execute(
        "BEGIN", "INSERT INTO t VALUES ()", "INSERT INTO t VALUES ()", "REPLACE INTO t VALUES ()", "COMMIT",
        setting=_MINIMAL,
    )  # fmt: skip
    assert [each.after for each in source.changes(3)] == [{}, {}, {}]
    (failure,) = _failures(source, "INSERT INTO t VALUES (), ()")
    assert failure == 1534  # the server's own refusal: the log could not say how many there are
    assert source.database.fetch("SELECT COUNT(*) FROM t") == [(3,)]


def test_columns_of_an_index_on_an_expression_are_not_in_the_rows(mysql_source: MySQLSource) -> None:
    """The server's bitmaps count a hidden column behind the others."""
    source = mysql_source
    source.execute("CREATE TABLE t (a int, b int DEFAULT 7, c int, KEY ((a + 1)))")
    source.watch()
    source.execute("INSERT INTO t (a) VALUES (1)", "INSERT INTO t () VALUES ()", setting=_MINIMAL)
    source.execute("ALTER TABLE t ADD d int DEFAULT 9", "INSERT INTO t VALUES (2, 2, NULL, 2)")
    assert [each.after for each in source.changes(3)] == [{"a": 1}, {}, {"a": 2, "b": 2, "c": None, "d": 2}]


def test_routes_that_compare_what_a_row_image_leaves_out_are_warned_of_and_no_others(
    source: MySQLSource,
) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, status varchar(9), body text)", "CREATE TABLE keyless (a int)"
    )
    router = BinlogRouter()
    schema = source.database.name
    router.register(schema, "t", "update", "t.status", when=became("status", "closed"))
    router.register(schema, "t", "update", "t.body", when=changed("body"))
    router.register(schema, "t", "update", "t.id", when=changed("id"))
    router.register(schema, "t", "insert", "t.insert", when=became("status", "closed"))
    router.register(schema, "keyless", "update", "keyless.a", when=changed("a"))
    router.register(schema, "t", ["insert", "delete"], "t.key", key=["id", "status"])
    router.register(schema, "t", "update", "t.document", key="body")
    router.register(schema, "t", "insert", "t.new", key="status")
    router.register(schema, "t", "delete", "t.gone", key="id")
    with closing(connect(source.database.url)) as connection:
        told = {
            image: [each.what for each in find_in_old_values(connection, router.routes, image)]
            for image in ("FULL", "FULL_NODUP", "NOBLOB", "MINIMAL")
        }
    assert told == {
        "FULL": [],
        "FULL_NODUP": [],
        "NOBLOB": ["route to t.body", "route to t.document"],
        "MINIMAL": ["route to t.status", "route to t.body", "route to t.key", "route to t.document"],
    }


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
def test_a_route_fires_as_the_warning_says(source: MySQLSource, image: str) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, other int, body text)", "INSERT INTO t VALUES (1, 1, 'x')"
    )
    source.watch()
    statements = ["UPDATE t SET body = 'x', other = 2", "UPDATE t SET other = 3", "UPDATE t SET id = 2"]
    source.execute(*statements, setting=f"binlog_row_image = '{image}'")
    fires = [changed("body")(change) for change in source.changes(3)]
    assert fires == [True, False, False]


def _failures(source: MySQLSource, statement: str) -> list[int]:
    try:
        source.execute(statement, setting=_MINIMAL)
    except pymysql.MySQLError as error:
        return [error.args[0]]
    return []
