"""Statements that a log has as statements, in every spelling: run on MariaDB and MySQL, and what arrives compared."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pymysql
import pytest
from structlog.testing import capture_logs

from harness.given_mysql import MariaDBServer, MySQLServer
from listener.core.source import GapError
from listener.mysql.sql.lexer import Kind, Rules, tokens
from listener.mysql.sql.statements import Effect, read_statement
from tests.support.mysql.log import end_of_log, logged_statements
from tests.support.mysql.source import MySQLDatabase, MySQLSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import Change

_TRUNCATES = (
    "TRUNCATE t",
    "TRUNCATE`t`",
    "truncate/**/TaBLe/**/t",
    "TRUNCATE TABLE `{database}`.`t`",
    "TRUNCATE TABLE`{database}`.t",
    "TRUNCATE {database} . t",
    "TRUNCATE t -- x",
    "TRUNCATE t --",
    "TRUNCATE t # x",
    "TRUNCATE t /* x */",
    "-- x\nTRUNCATE t",
    "--\x01x\nTRUNCATE t",
    "# x\nTRUNCATE t",
    "/*!TRUNCATE*/ t",
    "/*!50100 TRUNCATE TABLE t*/",
    "TRUNCATE/*!50100 TABLE*/t",
    "/*! TRUNCATE /* x */ t */",
    "/*!99999 foo /* x */ bar */TRUNCATE t",
    "TRUNCATE t;",
    "TRUNCATE 0x1g",
)
_MARIADB_TRUNCATES = (
    "TRUNCATE .t",
    "TRUNCATE t NOWAIT",
    "TRUNCATE t WAIT 5",
    "/*M!100100 TRUNCATE*/ t",
    "/*M!999999 foo*/TRUNCATE t",
    "/*!50701 foo*/TRUNCATE t",
    "SET STATEMENT max_statement_time=10 FOR TRUNCATE t",
    "SET STATEMENT max_statement_time=(SELECT 5), lc_time_names='de_DE' FOR TRUNCATE t",
    "SET STATEMENT max_statement_time=5 FOR SET STATEMENT sort_buffer_size=100000 FOR TRUNCATE`t`",
    "SET STATEMENT sql_mode='ANSI_QUOTES' FOR TRUNCATE t",
    "EXECUTE IMMEDIATE 'TRUNCATE t'",
    "BEGIN NOT ATOMIC TRUNCATE t; END",
    "IF 1 THEN TRUNCATE t; END IF",
)
_HARMLESS = (
    "CREATE TABLE a1 (a int, -- what users select\n b int)",
    "CREATE TABLE `a2`(`y`int)",
    "CREATE TABLE a3 (a int) # select",
    "CREATE TABLE a4 (a int) /* select */",
    "CREATE TABLE a5 (a int, `select` int) COMMENT = 'it''s \\' select'",
    'CREATE TABLE a6 (a char(20) DEFAULT "x "" select ")',
    "CREATE TABLE {database}.select (a int)",
    "CREATE TABLE a7 LIKE {database}.select",
    "CREATE TABLE a8 (LIKE a7)",
    "CREATE TABLE a9 (a int) PARTITION BY LIST (a) (PARTITION p VALUES IN (1), PARTITION q VALUES IN (2))",
    "CREATE TABLE a10 (a char(9) DEFAULT _latin1'select', b binary(1) DEFAULT X'00', c bit DEFAULT b'1')",
    "CREATE TABLE/*!50100 IF NOT EXISTS*/a11(a int)/*!50100 ENGINE=InnoDB*/",
    "CREATE VIEW v AS SELECT 1",
    "CREATE TRIGGER tr AFTER INSERT ON a1 FOR EACH ROW INSERT INTO a2 VALUES (1)",
    "CREATE PROCEDURE p() INSERT INTO a2 VALUES (1)",
    "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO TRUNCATE a1",
    "ALTER TABLE a1 ADD COLUMN c int DEFAULT 1, CONVERT TO CHARACTER SET utf8mb4",
    "CREATE INDEX i ON a1 (a)",
    "ANALYZE TABLE a1",
    "OPTIMIZE TABLE a1",
    "FLUSH TABLES",
    "CREATE TEMPORARY TABLE t AS SELECT 1 AS id",
    "INSERT INTO t VALUES (7)",
    "TRUNCATE t",
    "DROP TEMPORARY TABLE t",
    "DROP EVENT e",
    "DROP PROCEDURE p",
    "DROP VIEW v",
)
_MARIADB_HARMLESS = (
    "CREATE TABLE b1 (a int) WITH SYSTEM VERSIONING",
    "SET STATEMENT max_statement_time=5 FOR CREATE TABLE b2 (a int)",
    "SET STATEMENT sql_mode='ANSI_QUOTES' FOR CREATE TABLE b3 (a char(10) DEFAULT \"select\")",
    "CREATE SEQUENCE b4",
    "CREATE OR REPLACE VIEW v AS SELECT 1",
    "ANALYZE TABLE a1 PERSISTENT FOR ALL",
)
_HIDING = (
    "INSERT INTO t VALUES (1)",
    "/* x */ INSERT INTO t VALUES (1)",
    "# x\nINSERT INTO t VALUES (1)",
    "/*!INSERT*/ INTO t VALUES (1)",
    "/*!50100 INSERT INTO t VALUES (1) */",
    "SELECT f()",
    "SET @a = f()",
    "CREATE TABLE c AS SELECT 1 AS id",
    "CREATE TABLE c (id int) (SELECT 1 AS id)",
    "CREATE TABLE c ((SELECT 1 AS id))",
    "CREATE TABLE c (id int) PARTITION BY HASH (id) REPLACE SELECT 1 AS id",
)
_MARIADB_HIDING = (
    "CREATE TABLE c AS VALUES (1), (2)",
    "CREATE TABLE c (a int) AS (VALUES (1))",
    "CREATE TABLE c (WITH x AS (SELECT 1) SELECT * FROM x)",
    "CREATE TABLE c WITH SYSTEM VERSIONING SELECT 1 AS id",
    "CREATE OR REPLACE TABLE c SELECT 1 AS id",
    "CREATE TEMPORARY TABLE c SELECT f() AS id",
    "ANALYZE INSERT INTO t VALUES (1)",
    "ANALYZE FORMAT=JSON DELETE FROM t",
    "SET STATEMENT max_statement_time=5 FOR INSERT INTO t VALUES (1)",
    "BEGIN NOT ATOMIC INSERT INTO t VALUES (1); END",
    "EXECUTE IMMEDIATE 'INSERT INTO t VALUES (1)'",
)
_MYSQL_HIDING = (
    "CREATE TABLE c AS VALUES ROW(1), ROW(2)",
    "CREATE TABLE c AS TABLE t",
    "WITH x AS (SELECT 1) DELETE FROM t",
    "EXPLAIN ANALYZE DELETE t FROM t",
)


def _run(source: MySQLSource, *statements: str | bytes, session: str = "SET @none = 1") -> None:
    """Run the statements byte for byte in one session."""
    with closing(source.database.connect()) as connection:
        connection.query(session)
        for statement in statements:
            connection.query(statement)  # type: ignore[arg-type]


def _seen(changes: list[Change]) -> list[tuple[str, str]]:
    return [(each.table, each.event.value) for each in changes]


def _named(source: MySQLSource, statements: tuple[str, ...]) -> list[str]:
    return [each.format(database=source.database.name) for each in statements]


def test_truncate_arrives_however_it_is_written(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE `0x1g` (id int)")
    spellings = _named(source, _TRUNCATES + (_MARIADB_TRUNCATES if source.database.is_mariadb else ()))
    source.watch()
    for spelling in spellings:
        _run(source, spelling)
        (change,) = source.rest() or source.changes(1)
        assert (change.event.value, change.table) == ("truncate", "0x1g" if "0x1g" in spelling else "t"), (
            spelling
        )


def test_quoted_names_are_read_under_the_session_s_sql_mode(source: MySQLSource) -> None:
    source.execute('CREATE TABLE `o"dd` (id int)', "CREATE TABLE t (id int)", "CREATE TABLE `a\\` (id int)")
    source.watch()
    _run(source, 'TRUNCATE "t"', 'TRUNCATE"o""dd"', 'TRUNCATE "a\\"', session="SET sql_mode = 'ANSI_QUOTES'")
    _run(source, 'TRUNCATE "t"', session="SET sql_mode = 'ANSI'")
    expected = ["t", 'o"dd', "a\\", "t"]
    if source.database.is_mariadb:
        _run(source, "TRUNCATE [t]", 'TRUNCATE[o"dd]', session="SET sql_mode = 'MSSQL'")
        _run(source, "TRUNCATE TABLE t DROP STORAGE", session="SET sql_mode = 'ORACLE'")
        _run(source, "SET STATEMENT sql_mode = '' FOR TRUNCATE \"t\"", session="SET sql_mode = 'ANSI_QUOTES'")
        expected += ["t", 'o"dd', "t", "t"]
    assert _seen(source.changes(len(expected))) == [(name, "truncate") for name in expected]


@pytest.mark.parametrize(
    ("charset", "codec", "names"),
    [
        ("latin1", "cp1252", ["nämé", "€"]),
        ("gbk", "gbk", ["中文", "縗", "璥", "中`文"]),
        ("sjis", "shift_jis", ["表", "ソ能"]),
        ("big5", "big5", ["功", "中文"]),
        ("cp1251", "cp1251", ["имя"]),
        ("utf8mb3", "utf-8", ["näme中"]),
        ("binary", "utf-8", ["能ä"]),
    ],
)
def test_names_arrive_from_a_client_of_any_character_set(
    source: MySQLSource, charset: str, codec: str, names: list[str]
) -> None:
    quoted = [f"`{name.replace('`', '``')}`" for name in names]
    plain = [name for name in names if name.isalpha() and charset != "binary"]
    source.execute(*(f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in quoted))
    source.watch()
    _run(
        source,
        *(f"TRUNCATE {name}-- ü".encode(codec, errors="ignore") for name in quoted),
        *(f"TRUNCATE {name}".encode(codec) for name in plain),
        session=f"SET NAMES {charset}",
    )
    expected = [*names, *plain]
    assert _seen(source.changes(len(expected))) == [(name, "truncate") for name in expected]


def test_a_no_break_space_is_a_blank_to_a_latin1_client(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int)")
    source.watch()
    _run(source, b"TRUNCATE\xa0t", b"TRUNCATE t --\xa0x\xe4", session="SET NAMES latin1")
    assert _seen(source.changes(2)) == [("t", "truncate")] * 2


def test_a_harmless_statement_is_no_gap(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.watch("t")
    mariadb = _MARIADB_HARMLESS if source.database.is_mariadb else ()
    _run(source, *_named(source, _HARMLESS + mariadb))
    _run(
        source,
        "CREATE TABLE n1 (a char(20) DEFAULT '\\', b char(20) DEFAULT ' ) select ')",
        'CREATE TABLE n2 (a char(20) DEFAULT "\\", b char(20) DEFAULT " ) select ")',
        session="SET sql_mode = 'NO_BACKSLASH_ESCAPES'",
    )
    _run(source, 'CREATE TABLE n3 ("select" int)', session="SET sql_mode = 'ANSI_QUOTES'")
    _run(source, "INSERT INTO t VALUES (1)")
    assert [each.row["id"] for each in source.changes(1)] == [1]


def test_the_session_s_characters_do_not_hide_quotes(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.watch()
    _run(
        source,
        "CREATE TABLE n1 (a int COMMENT '縗', `b璥` int COMMENT '縗 ) select ')".encode("gbk"),
        "CREATE TABLE n2 AS SELECT 1 AS `中`, '縗 select ' AS `璥`".encode("gbk"),
        session="SET NAMES gbk, sql_mode = ''",
    )
    _run(
        source,
        "CREATE TABLE n3 (a int COMMENT 'ソ', b int COMMENT '表 ) select ')".encode("shift_jis"),
        session="SET NAMES sjis, sql_mode = ''",
    )
    assert [list(each.row) for each in source.changes(1)] == [["中", "璥"]]


@pytest.fixture
def hidden(source: MySQLSource) -> Iterator[MySQLSource]:
    """A source with a function that writes, for sessions that log statements."""
    source.execute(
        "SET GLOBAL log_bin_trust_function_creators = ON",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE u (id int PRIMARY KEY AUTO_INCREMENT)",
        "CREATE FUNCTION f() RETURNS int BEGIN INSERT INTO u VALUES (NULL); RETURN 1; END",
    )
    yield source
    source.execute("SET GLOBAL log_bin_trust_function_creators = OFF")


def _effects(source: MySQLSource, statements: tuple[str, ...], session: str) -> list[list[Effect]]:
    """Run each statement; return what is made of what the log has of it."""
    found = []
    for statement in statements:
        start = end_of_log(source.database)
        _run(source, statement, session=session)
        queries, dialect = logged_statements(source.database, start)
        found.append([read_statement(query, dialect).effect for query in queries])
        source.execute("DROP TABLE IF EXISTS c", "DELETE FROM t")
    return found


def test_rows_that_are_logged_as_statements_are_noticed(hidden: MySQLSource) -> None:
    mariadb = hidden.database.is_mariadb
    statements = _HIDING + (_MARIADB_HIDING if mariadb else _MYSQL_HIDING)
    effects = _effects(hidden, statements, "SET binlog_format = 'STATEMENT'")
    if mariadb:
        one = "SET STATEMENT binlog_format='STATEMENT' FOR INSERT INTO t VALUES (1)"
        effects += _effects(hidden, (one,), "SET @none = 1")
        statements += (one,)
    alarming = {Effect.HIDES, Effect.UNKNOWN}
    assert [text for text, found in zip(statements, effects, strict=True) if not alarming & {*found}] == []


@pytest.mark.parametrize("statement", ["/*!INSERT*/ INTO t VALUES (1)", "CREATE TABLE c SELECT 1 AS id"])
def test_missing_rows_stop_the_listener_with_the_sql_that_shows_and_mends_it(
    hidden: MySQLSource, statement: str
) -> None:
    hidden.watch()
    _run(hidden, statement, session="SET binlog_format = 'STATEMENT'")
    with pytest.raises(GapError, match="its rows are missing") as caught:
        hidden.changes(1)
    look, mend = (caught.value.hint or "").split("\n")[:2]
    shown = hidden.database.fetch(look.partition(";")[0])
    assert any(statement in str(row[-1]) for row in shown)
    hidden.execute(mend.partition(";")[0])


def test_the_same_statements_are_no_gap_where_their_rows_are_logged(hidden: MySQLSource) -> None:
    hidden.watch()
    for statement in _HIDING + (_MARIADB_HIDING if hidden.database.is_mariadb else _MYSQL_HIDING):
        _run(hidden, statement)
        _run(hidden, "DROP TABLE IF EXISTS c", "DELETE FROM t")
    _run(hidden, "INSERT INTO t VALUES (1000)")
    *_, last = hidden.rest()
    assert last.row["id"] == 1000


def test_rows_that_move_with_a_definition_are_told(source: MySQLSource) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10),"
        " PARTITION p1 VALUES LESS THAN (20))",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1), (11)",
    )
    source.watch("t", "n?w")
    name = source.database.name
    with capture_logs() as logs:
        _run(
            source,
            "ALTER TABLE t TRUNCATE PARTITION p0",
            "ALTER TABLE t EXCHANGE PARTITION p1 WITH TABLE other",
            "ALTER TABLE t DROP PARTITION p1",
            "ALTER TABLE t ADD PARTITION (PARTITION p2 VALUES LESS THAN (30))",
            "RENAME TABLE t TO old, other TO new",
            "ALTER TABLE old RENAME t",
            "DROP TABLE new, t",
            "CREATE TABLE t (id int PRIMARY KEY)",
            "INSERT INTO t VALUES (1)",
        )
        source.changes(1)
    logged = [(each["statement"], each["tables"]) for each in logs if each["event"] == "rows_without_changes"]
    assert logged == [
        ("ALTER TABLE … TRUNCATE PARTITION", [f"{name}.t"]),
        ("ALTER TABLE … EXCHANGE PARTITION", [f"{name}.t"]),
        ("ALTER TABLE … DROP PARTITION", [f"{name}.t"]),
        ("RENAME TABLE", [f"{name}.t", f"{name}.new"]),
        ("ALTER TABLE … RENAME", [f"{name}.t"]),
        ("DROP TABLE", [f"{name}.new", f"{name}.t"]),
    ]


def test_a_savepoint_is_known_in_any_case(source: MySQLSource) -> None:
    """MariaDB logs what was rolled back to a savepoint when a temporary table was made or dropped in between."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    temporary = ("CREATE TEMPORARY TABLE x (id int)", "DROP TEMPORARY TABLE x")
    for batch_size in (1000, 1):
        source.watch("t", batch_size=batch_size)
        source.execute(
            "BEGIN", "INSERT INTO t VALUES (1)", "SAVEPOINT Ünder", "INSERT INTO t VALUES (2)", *temporary,
            "ROLLBACK WORK TO SAVEPOINT üNDER", "INSERT INTO t VALUES (3)", "COMMIT",
        )  # fmt: skip
        assert [each.row["id"] for each in source.changes(2)] == [1, 3]
        source.execute("DELETE FROM t")
        assert len(source.changes(2)) == 2
        source.stop()


class _FoldingMySQL(MySQLServer):
    def _options(self) -> list[str]:
        return [*super()._options(), "--lower-case-table-names=1"]


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def folding_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    """A server on which names are in lower case, whatever one writes."""
    make = partial(MariaDBServer, arguments=["--lower-case-table-names=1"])
    with make() if request.param == "mariadb" else _FoldingMySQL() as server:
        yield server


@pytest.fixture
def folding(folding_server: MariaDBServer | MySQLServer) -> Iterator[MySQLSource]:
    """A database on it."""
    administrator = MySQLDatabase(name="", server=folding_server)
    administrator.execute("DROP DATABASE IF EXISTS shop", "CREATE DATABASE shop")
    with MySQLSource(MySQLDatabase(name="shop", server=folding_server)) as source:
        yield source


def test_names_in_another_case_are_the_same_where_the_server_folds_them(folding: MySQLSource) -> None:
    folding.execute("CREATE TABLE People (id int)", "CREATE TABLE `ÄPFEL` (id int)")
    folding.watch("people", "äpfel")
    _run(folding, "TRUNCATE PEOPLE", "TRUNCATE Shop.`äPfel`", "TRUNCATE SHOP.people")
    assert _seen(folding.changes(3)) == [
        ("people", "truncate"),
        ("äpfel", "truncate"),
        ("people", "truncate"),
    ]


def test_a_memory_table_that_a_restart_has_emptied_is_truncated(folding: MySQLSource) -> None:
    folding.execute("CREATE TABLE `m中` (id int) ENGINE=MEMORY", "INSERT INTO `m中` VALUES (1)")
    folding.watch()
    folding.stop()
    folding.database.server.restart()  # type: ignore[union-attr]
    _run(folding, "INSERT INTO `m中` VALUES (2)".encode("gbk"), session="SET NAMES gbk")
    folding.watch()
    assert _seen(folding.changes(2)) == [("m中", "truncate"), ("m中", "insert")]


def test_the_bytes_of_a_character_are_cut_as_the_server_cuts_them(source: MySQLSource) -> None:
    """Ask the server whether a literal ends where the lexer says."""
    for charset in ("big5", "cp932", "gbk", "sjis", "ujis", "euckr", "gb2312", "latin1", "utf8mb4"):
        with closing(source.database.connect()) as connection, connection.cursor() as cursor:
            connection.query(f"SET NAMES {charset}, character_set_results = utf8mb4, sql_mode = ''")
            for lead in (0x80, 0x81, 0x9F, 0xA0, 0xA1, 0xBF, 0xDF, 0xE0, 0xF9, 0xFA, 0xFC, 0xFD, 0xFE, 0xFF):
                for literal in (b"'%c\\'", b"'%c\\''", b"'\\%c\\''", b"'%c\\\\'", b"'%c''"):
                    text = literal % lead
                    kinds = [each.kind for each in tokens(text, Rules(mariadb=True, charset=charset))]
                    assert (kinds == [Kind.STRING]) == _is_literal(cursor, text), (charset, text)


def _is_literal(cursor: pymysql.cursors.Cursor, text: bytes) -> bool:
    try:
        cursor.connection.query(b"DO LENGTH(" + text + b")")  # type: ignore[arg-type]
    except pymysql.ProgrammingError:
        return False
    return True
