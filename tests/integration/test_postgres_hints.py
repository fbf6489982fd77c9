"""Each hint does what it says, as it is pasted, whatever role and database are called."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from listener.postgres import hints
from listener.postgres.client.errors import Refusal, refused
from listener.postgres.hints import RESERVED, quoted
from listener.postgres.log.position import format_lsn, parse_lsn

if TYPE_CHECKING:
    from tests.conftest import Database

_SQL = re.compile(r"\b(?:ALTER|CREATE|GRANT|SELECT) [^;]*(?=;)")
_NAMES = [("listener", "helpdesk"), ('Mr "O\'Neil" {x}', "Größe 100 %"), ("user", "select")]


@pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])
def test_the_sql_of_every_hint_works_as_pasted(server_class: type[PostgresServer]) -> None:
    tried = set()
    with server_class() as server:
        with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("SELECT lsn::text FROM pg_create_logical_replication_slot('ours', 'pgoutput')")
            ((made,),) = cursor.fetchall()
            cursor.execute("CREATE TABLE t (x int)")  # log to go beyond
            for role, database in _NAMES:
                for statement in _statements(role, database, format_lsn(parse_lsn(made) + 1)):
                    (_drop if statement.startswith("CREATE") else _create)(cursor, role, database)
                    cursor.execute(statement)
                    tried.add(statement)
                _drop(cursor, role, database)
        server.restart()  # with all that was set
    assert len(tried) > 20


def _statements(role: str, database: str, beyond: str) -> list[str]:
    """Return all SQL of the hints, except statements with a placeholder that a person must fill in."""
    names = {"role": quoted(role), "database": quoted(database), "slot": "ours", "beyond": beyond}
    ours = [getattr(hints, name) for name in hints.__all__]
    texts = [each.format(**names) for each in ours if isinstance(each, str)]
    texts += [str(refused("words", each, {"user": role, "dbname": database})) for each in _REFUSALS]
    found = [statement for text in texts for statement in _SQL.findall(text)]
    # Only on Amazon RDS; a slot that a person has to name.
    return [each for each in found if "rds_replication" not in each and "'NAME'" not in each]


_REFUSALS = [
    Refusal("words", "55000"),
    Refusal("words", "42501", "CheckMyDatabase"),
    Refusal("words", "28000", "InitializeSessionUserId"),
]


def _create(cursor: Any, role: str, database: str) -> None:
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
    if not cursor.fetchall():
        cursor.execute(f"CREATE ROLE {quoted(role)}")
    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
    if not cursor.fetchall():
        cursor.execute(f"CREATE DATABASE {quoted(database)}")


def _drop(cursor: Any, role: str, database: str) -> None:
    cursor.execute(f"DROP DATABASE IF EXISTS {quoted(database)}")
    cursor.execute(f"DROP ROLE IF EXISTS {quoted(role)}")


def test_every_keyword_that_is_no_name_is_quoted(any_database: Database) -> None:
    words = any_database.fetch("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    assert {word for (word,) in words} <= RESERVED


@pytest.mark.parametrize("server_class", [PostgresServer, DebianPostgresServer])
def test_the_sql_of_the_manual_works_as_pasted(server_class: type[PostgresServer]) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", manual, re.DOTALL)
    assert len(blocks) > 2
    with server_class() as server:
        with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("CREATE DATABASE helpdesk")
        with (
            closing(psycopg2.connect(server.url_of("helpdesk"))) as connection,
            connection.cursor() as cursor,
        ):
            connection.autocommit = True
            cursor.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
            cursor.execute("CREATE PUBLICATION cdc_tasks FOR TABLE tickets")
            cursor.execute("SELECT pg_create_logical_replication_slot('cdc_tasks', 'pgoutput')")
            for statement in "".join(blocks).split(";"):
                if re.sub(r"--.*", "", statement).strip():
                    cursor.execute(statement)
        server.restart()
