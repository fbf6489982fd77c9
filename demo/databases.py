"""The demo's database: the one that the environment names, or one that the demo starts."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Literal, NamedTuple

from cdc_tasks.errors import CDCError
from listener.daemon.database_url import DatabaseType, detect_database_type, home_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["Database", "DatabaseKind", "open_database"]

DatabaseKind = Literal["postgresql", "mariadb", "mysql"]

_NAME = "helpdesk"  # the database that the demo creates on its own MariaDB or MySQL


class WrongDatabaseError(CDCError):
    """DATABASE_URL and --database contradict each other."""


class Database(NamedTuple):
    """The URL, and the command that runs a quoted statement."""

    url: str
    sql: str


def open_database(cleanup: ExitStack, say: Callable[[str], None], kind: DatabaseKind | None) -> Database:
    """Return the database of DATABASE_URL, or start one of this kind (default: PostgreSQL); raises CDCError."""
    if url := os.environ.get("DATABASE_URL"):
        return _named(url, kind)
    if kind is None or kind == "postgresql":
        return _start_postgres(cleanup, say)
    return _start_mysql(cleanup, say, kind)


def _named(url: str, kind: DatabaseKind | None) -> Database:
    found = detect_database_type(url)
    if kind is not None and (found is DatabaseType.POSTGRESQL) != (kind == "postgresql"):
        raise WrongDatabaseError(
            f"DATABASE_URL names {found}, and --database says {kind}.", hint="Leave out one of them."
        )
    if found is DatabaseType.POSTGRESQL:
        return Database(url, 'psql "$DATABASE_URL" -c')
    return Database(url, f"mysql … {home_schema(url)} -e")


def _start_postgres(cleanup: ExitStack, say: Callable[[str], None]) -> Database:
    from harness.embedded_servers import PostgresServer

    say("PostgreSQL")
    server = cleanup.enter_context(PostgresServer())
    psql = "psql" if shutil.which("psql") else server.binaries / "psql"
    return Database(server.url, f"{psql} {server.url} -c")


def _start_mysql(
    cleanup: ExitStack, say: Callable[[str], None], kind: Literal["mariadb", "mysql"]
) -> Database:
    from harness.mysql_servers import MariaDBServer, MySQLServer

    server: MariaDBServer | MySQLServer
    if kind == "mariadb":
        say("MariaDB")
        server = MariaDBServer()
    else:
        say("MySQL (unpacks Debian's packages the first time)")
        server = MySQLServer()
    cleanup.enter_context(server)
    return Database(server.create_database(_NAME), f"{server.client_of(_NAME)} -e")
