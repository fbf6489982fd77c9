"""What many tables cost on MySQL and MariaDB: a handful of sessions, and questions that grow with the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from listener.mysql.check import find_in_tables
from listener.router import BinlogRouter, EventType
from tests.support.mysql.source import MySQLSource

if TYPE_CHECKING:
    import pytest

    from tests.support.mysql.source import MySQLDatabase

FEW, MANY = 40, 80
_HANDFUL = 12


def make_tables(database: MySQLDatabase, count: int) -> None:
    """Make tables with columns for which MariaDB's catalogue is asked, and of a character set of the server's own."""
    special = "a uuid, b inet6, c inet4, d json" if database.is_mariadb else "a binary(16), b json"
    database.execute(
        *(
            f"CREATE TABLE t_{number} (id int PRIMARY KEY, {special}, e longtext, f varchar(9) CHARACTER SET latin2,"
            " g varchar(9) CHARACTER SET cp932, h varchar(9) CHARACTER SET greek)"
            for number in range(count)
        )
    )


def counted(database: MySQLDatabase, name: str) -> int:
    return int(database.fetch(f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])


def cost_of(source: MySQLSource, count: int) -> tuple[int, int]:
    """Return how many sessions and queries a start takes, with the first change of each of these tables."""
    database = source.database
    source.execute(*(f"DELETE FROM t_{number}" for number in range(count)))
    source.position = None
    before = counted(database, "Connections"), counted(database, "Questions")
    source.watch(*(f"t_{number}" for number in range(count)))
    inserts = [
        f"INSERT INTO t_{number} (id, e, f, g, h) VALUES (1, 'e', '\u0159', '\u3042', '\u03a9')"
        for number in range(count)
    ]
    source.execute(*inserts)
    for change in source.changes(count):
        assert [change.row[name] for name in "efgh"] == ["e", "\u0159", "\u3042", "\u03a9"]
    after = counted(database, "Connections"), counted(database, "Questions")
    source.stop()
    return after[0] - before[0], after[1] - before[1] - len(inserts)


def test_a_start_and_the_first_change_of_each_table_take_a_handful_of_sessions(source: MySQLSource) -> None:
    make_tables(source.database, MANY)
    few, many = cost_of(source, FEW), cost_of(source, MANY)
    assert many[0] < _HANDFUL + 4, "the test itself has four"
    assert many[1] - few[1] <= 6 * (MANY - FEW), "for each table a few"


def test_names_are_compared_with_globs_alone(source: MySQLSource, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tables(source.database, FEW)
    router = BinlogRouter()
    for number in range(FEW):
        router.register(source.database.name, f"t_{number}", EventType.ALL, f"task_{number}")
    router.register(source.database.name, "t_1*", EventType.ALL, "all")
    compared: list[str] = []
    matches = type(router.routes[0]).matches

    def counting(route: object, schema: str, table: str) -> bool:
        compared.append(table)
        return bool(matches(route, schema, table))  # type: ignore[arg-type]  # a route

    monkeypatch.setattr(type(router.routes[0]), "matches", counting)
    with source.database.connect() as connection:
        found = list(find_in_tables(connection, router.routes))
        ((total,),) = source.database.fetch(
            "SELECT count(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA NOT IN"
            " ('information_schema', 'performance_schema', 'mysql', 'sys')"
        )
    assert [each.found for each in found] == ["found"] * (FEW + 1)
    assert len(compared) <= total
