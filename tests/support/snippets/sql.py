"""SQL and server configuration in pages, tried on real servers."""

from __future__ import annotations

import configparser
import re
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg2
import pymysql

from cdc_tasks.routing.enqueued import CREATE_MARKS
from tests.support.snippets.blocks import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.conftest import Database
    from tests.support.mysql.source import MySQLDatabase
    from tests.support.snippets.blocks import Block

__all__ = ["problems_of_configuration", "problems_on_mysql", "problems_on_postgres"]

_COMMENT: Final = re.compile(r"--.*$", re.MULTILINE)
_CREATED: Final = re.compile(r"CREATE TABLE (\w+)")
_DROPPED_SLOT: Final = re.compile(r"pg_drop_replication_slot\('(\w+)'\)")
# PostgreSQL runs these only outside of transactions, and for the whole server: they are only parsed.
_ALONE: Final = re.compile(
    r"\s*(ALTER SYSTEM|VACUUM|CREATE DATABASE|DROP DATABASE|(CREATE|DROP|RE) ?INDEX CONCURRENTLY)",
    re.IGNORECASE,
)
_OF_TRANSACTIONS: Final = {"BEGIN", "COMMIT", "START TRANSACTION"}
# The tables of the pages: the help desk, a shop, and a listener's objects.
_TABLES: Final = (
    "CREATE TABLE orders (id int PRIMARY KEY, status varchar(9), currency char(3), total int, updated_at timestamp)",
    "CREATE TABLE orders_order (id int PRIMARY KEY, status varchar(20), customer varchar(80))",
)
_OF_HELPDESK: Final = (
    "INSERT INTO users (id, name, email) SELECT g, g, g FROM generate_series(1, 3) g",
    "CREATE ROLE helpdesk_app",
    "CREATE PUBLICATION cdc_tasks FOR TABLE ONLY tickets",
)


def problems_on_postgres(blocks: Sequence[Block], database: Database) -> Iterator[str]:
    """Run a page's statements in a transaction that is rolled back; yield what fails."""
    text = "\n".join(each.text for each in blocks)
    for slot in _DROPPED_SLOT.findall(text):  # a rollback does not restore it
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    schema = (CHECKOUT / "cdc_tasks" / "helpdesk" / "schema" / "postgresql.sql").read_text()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(schema)
        for statement in (*_without(_TABLES, text), *_OF_HELPDESK):
            cursor.execute(statement)
        for block in blocks:
            statements = _statements(block.text.replace("DATABASE helpdesk", f"DATABASE {database.name}"))
            yield from _run_each(block, map(_for_a_transaction, statements), cursor)


def _for_a_transaction(statement: str) -> str:
    """Return the statement, or put it into a function that is never called, so that the server only parses it."""
    if not _ALONE.match(statement):
        return statement
    name = f"snippet_{uuid.uuid4().hex}"
    return f"CREATE FUNCTION {name}() RETURNS void LANGUAGE plpgsql AS $snippet$ BEGIN {statement}; END $snippet$"


def problems_on_mysql(blocks: Sequence[Block], database: MySQLDatabase) -> Iterator[str]:
    """Run a page's statements in one session; yield what fails. Users that they create are dropped afterwards."""
    text = "\n".join(each.text for each in blocks)
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS orders, orders_order, cdc_tasks_marks")
        for statement in _without((*_TABLES, CREATE_MARKS), text):
            cursor.execute(statement)
        for block in blocks:
            yield from _run_each(block, _statements(block.text), cursor)
        for user in re.findall(r"CREATE USER (\S+)", text):
            cursor.execute(f"DROP USER {user}")


def problems_of_configuration(block: Block, database: MySQLDatabase) -> Iterator[str]:
    """Yield the names in this configuration that are not variables of the server."""
    parser = configparser.ConfigParser(allow_no_value=True, inline_comment_prefixes=("#",))
    parser.read_string(block.text)
    known = {str(name).lower() for name, _ in database.fetch("SHOW GLOBAL VARIABLES")}
    for name in (name for section in parser.sections() for name in parser.options(section)):
        if name.replace("-", "_") not in known:
            yield f"{block}: {database.server.name} has no variable {name}"


def _run_each(block: Block, statements: Iterable[str], cursor: Any) -> Iterator[str]:
    cursor.execute("SAVEPOINT block")
    for statement in statements:
        try:
            cursor.execute(statement)
        except (psycopg2.Error, pymysql.Error) as error:
            yield f"{block}: {statement}: {error}"
            cursor.execute("ROLLBACK TO SAVEPOINT block")
            return


def _without(tables: Iterable[str], text: str) -> Iterator[str]:
    """Yield the statements, except those for tables that the page creates itself."""
    made = set(_CREATED.findall(text))
    yield from (each for each in tables if made.isdisjoint(_CREATED.findall(each)))


def _statements(text: str) -> Iterator[str]:
    """Yield the statements, except those that begin and end a transaction."""
    statement = ""
    for part in _COMMENT.sub("", text).split(";"):
        statement += part
        if statement.count("$$") % 2:
            statement += ";"
            continue
        if statement.strip() and statement.strip().upper() not in _OF_TRANSACTIONS:
            yield statement.strip()
        statement = ""
