"""Statements in random spellings, seeded: what the lexer makes of the log is what the server did."""

from __future__ import annotations

import random
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

from listener.mysql.sql.statements import Effect, read_statement
from tests.support.mysql.log import end_of_log, logged_statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.mysql.source import MySQLDatabase

_STATEMENTS = 150  # for each seed; about half of them are valid
_TABLES = ("t", 'o"dd', "a`b", "a\\", "縗", "璥x", "ä")
_CODECS = {"utf8mb4": "utf-8", "gbk": "gbk", "latin1": "cp1252", "sjis": "shift_jis"}
_MODES = ("", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES,NO_BACKSLASH_ESCAPES")
_BETWEEN = (" ", "\n", "\t", "\v", "/**/", "/* ' */", '/* ` " */', "-- '\n", "--\t\n", "#`\n", "/*!*/", "/*!50100*/",
            "/*!99999 ' */", "/*!99999 /* ` */ */")  # fmt: skip
_MARIADB_BETWEEN = ("/*M!*/", "/*M!999999 x*/", "/*!50701 x '*/")
_SETTINGS = ("max_statement_time=10", "lc_time_names='de_DE', max_statement_time=(5)", "sql_mode=''",
             "sql_mode='ANSI_QUOTES'", 'sql_mode="NO_BACKSLASH_ESCAPES"')  # fmt: skip
_INSIDE = ("select", " select 1 ", " ", "'", "''", '"', '""', "`", "\\", "\\\\", "\\'", "(", ")", "-- ", "#", "\n",
           "/*", "*/", "/*!", "縗", "璥", "表")  # fmt: skip
_QUERIES = (
    "",
    "",
    "select 1 as a",
    "as (select 1 as a)",
    "(select 1 as a)",
    "values (1)",
    "values row(1)",
    "# select",
)


class _Writer:
    """Writes statements at random: TRUNCATE in some spelling, CREATE TABLE with quotes and remarks in it."""

    def __init__(self, seed: int, schema: str, *, mariadb: bool) -> None:
        self._random = random.Random(seed)
        self._schema = schema
        self._mariadb = mariadb
        self._between = _BETWEEN + (_MARIADB_BETWEEN if mariadb else ())

    def session(self) -> tuple[str, str]:
        return self._random.choice(_MODES), self._random.choice(list(_CODECS))

    def truncate(self) -> tuple[str, str]:
        """Return a statement, and the table that it empties."""
        table = self._random.choice(_TABLES)
        quote = self._random.choice('`"')
        name = f"{quote}{table.replace(quote, quote * 2)}{quote}" if self._maybe(0.8) else table
        if self._maybe(0.3):
            name = f"{self._schema}{self._gap()}.{self._gap()}{name}"
        verb = self._marked("TRUNCATE") + self._gap(1)
        word = self._marked("TABLE") + self._gap(1) if self._maybe(0.5) else ""
        end = self._random.choice(["", ";", " -- x", "# '", "--"])
        return f"{self._prefix()}{verb}{word}{name}{self._gap()}{end}", table

    def create(self) -> str:
        """Return a statement that makes the table `made`, with rows or without."""
        name = self._random.choice(["made", "`made`", f"{self._schema}.made"])
        first = self._random.choice(["", f"COMMENT{self._gap(1)}{self._literal()}"])
        second = self._random.choice(["", f", b char(30) DEFAULT{self._gap(1)}{self._literal()}"])
        option = self._random.choice(["", f"COMMENT{self._gap(1)}{self._literal()}"])
        verb = self._marked("CREATE") + self._gap(1) + self._marked("TABLE") + self._gap(1)
        query = self._random.choice(_QUERIES)
        columns = f"{name}{self._gap()}(a int {first}{second})"
        return f"{self._prefix()}{verb}{columns}{self._gap()}{option}{self._gap()}{query}"

    def _prefix(self) -> str:
        if not self._mariadb or self._maybe(0.7):
            return ""
        gap = self._gap
        return f"SET{gap(1)}STATEMENT{gap(1)}{self._random.choice(_SETTINGS)}{gap(1)}FOR{gap(1)}"

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _gap(self, least: int = 0) -> str:
        return "".join(self._random.choice(self._between) for _ in range(self._random.randint(least, 2)))

    def _marked(self, word: str) -> str:
        """Return the word, or the word in a comment that the server executes."""
        if self._maybe(0.8):
            return word
        opening = self._random.choice(
            ["/*!", "/*!50100 ", "/*!080000 ", *(["/*M!100000 "] if self._mariadb else [])]
        )
        return f"{opening}{word}{self._random.choice(['', ' /* x */ '])}*/"

    def _literal(self) -> str:
        quote = self._random.choice("'\"")
        return (
            quote + "".join(self._random.choice(_INSIDE) for _ in range(self._random.randint(0, 6))) + quote
        )


def _expected(
    writer: _Writer, connection: pymysql.connections.Connection[Any]
) -> Iterator[tuple[bytes, Effect, str]]:
    """Run statements; yield those that the server took, and what it did."""
    for number in range(_STATEMENTS):
        mode, charset = writer.session()
        text, table = writer.truncate() if number % 2 else (writer.create(), "")
        encoded = text.encode(_CODECS[charset], errors="ignore")
        if encoded.decode(_CODECS[charset]) != text:
            continue
        connection.query(f"SET NAMES {charset}, character_set_results = utf8mb4, sql_mode = '{mode}'")
        try:
            connection.query(encoded)  # type: ignore[arg-type]
        except pymysql.MySQLError:
            continue
        if table:
            yield encoded, Effect.TRUNCATES, table
            continue
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM made")
            ((count,),) = cursor.fetchall()
        connection.query("SET NAMES utf8mb4, sql_mode = ''")
        connection.query("DROP TABLE made")
        yield encoded, Effect.HIDES if count else Effect.NOTHING, ""


@pytest.mark.parametrize("seed", [1, 2])
def test_the_log_is_read_as_the_server_read_the_statement(any_mysql: MySQLDatabase, seed: int) -> None:
    any_mysql.execute(*(f"CREATE TABLE `{table.replace('`', '``')}` (id int)" for table in _TABLES))
    start = end_of_log(any_mysql)
    with closing(any_mysql.connect()) as connection:
        connection.query("SET binlog_format = 'STATEMENT'")
        writer = _Writer(seed, any_mysql.name, mariadb=any_mysql.is_mariadb)
        expected = list(_expected(writer, connection))
    queries, dialect = logged_statements(any_mysql, start)
    queries = [each for each in queries if not each.text.startswith(b"DROP TABLE")]
    assert len(queries) == len(expected) > _STATEMENTS // 4
    for query, (text, effect, table) in zip(queries, expected, strict=True):
        found = read_statement(query, dialect)
        tables = ((any_mysql.name, table),) if table else ()
        assert (found.effect, found.tables) == (effect, tables), (seed, text, query)
