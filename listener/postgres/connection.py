"""Sessions on PostgreSQL: made here, and their errors put into our words here, once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - the driver's class has a lower-case name
from psycopg2.extensions import encodings, parse_dsn
from psycopg2.extras import LogicalReplicationConnection
from psycopg2.sql import Composable

from cdc_tasks.errors import CDCError
from listener.monitor import SourceError
from listener.postgres.errors import translate

__all__ = [
    "Connection",
    "connect",
    "connect_replication",
    "execute",
    "fetch",
    "fetch_value",
    "is_shutting_down",
    "log_codec",
    "translated",
]

_DRIVER: Final = re.compile(r"^(postgres(?:ql)?)\+\w+(?=://)", re.IGNORECASE)

# The text of values depends on these; a role's or a database's own settings must not change it. They are sent
# when the session starts, so that they hold for a WAL sender too, which takes no SET.
_SESSION: Final = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "pg_catalog",  # names come out qualified, and nobody's function shadows ours
    "statement_timeout": "0",
    "lock_timeout": "0",
    "quote_all_identifiers": "off",
}

# The same for settings that earlier versions than these (as libpq has it) do not know, and would refuse. They end a
# session that waits, and transaction_timeout a WAL sender too, in the middle of what it sends.
_SINCE: Final = {"idle_session_timeout": 14_00_00, "transaction_timeout": 17_00_00}

# Defaults: what the URL says wins. A server that is gone without a word is noticed after half a minute.
_PARAMETERS: Final[Mapping[str, Any]] = {
    "application_name": "cdc-tasks",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


def connect(url: str) -> Connection:
    """Open an ordinary session, with autocommit; raises SourceError, SourceLost."""
    parameters = connection_parameters(url)
    with translated(parameters):
        connection: Connection = psycopg2.connect(**parameters)
        connection.autocommit = True
        _lift_timeouts(connection)
    return connection


def connect_replication(url: str) -> LogicalReplicationConnection:
    """Open a session of the replication protocol; raises SourceError, SourceLost."""
    parameters = connection_parameters(url)
    with translated(parameters):
        connection: LogicalReplicationConnection = psycopg2.connect(
            **parameters, connection_factory=LogicalReplicationConnection
        )
        _lift_timeouts(connection)
        if (encoding := _server_encoding(connection)) != "UTF8" and encoding in encodings:
            # As it is: the server would stop at the first bytes for which UTF-8 has no character.
            connection.set_client_encoding("SQL_ASCII")
    return connection


def _lift_timeouts(connection: Connection) -> None:
    with connection.cursor() as cursor:
        for setting, version in _SINCE.items():
            if connection.info.server_version >= version:
                cursor.execute(f"SET {setting} = 0")


def log_codec(connection: LogicalReplicationConnection) -> str:
    """Return Python's name of the encoding in which the log's texts come."""
    encoding = _server_encoding(connection)
    return "utf-8" if encoding in {"UTF8", "SQL_ASCII"} else encodings.get(encoding, "utf-8")


def _server_encoding(connection: Connection) -> str:
    return connection.info.parameter_status("server_encoding") or "UTF8"


def is_shutting_down(url: str) -> bool:
    """Ask the server; the driver has no SQLSTATE for it, so this goes by its English words."""
    try:
        connect(url).close()
    except CDCError as error:
        return "shutting down" in error.message
    return False


def connection_parameters(url: str) -> dict[str, Any]:
    """Return libpq's parameters for a URL, SQLAlchemy's `postgresql+psycopg2://` included."""
    try:
        given = parse_dsn(_DRIVER.sub(r"\1", url))
        for port in given.get("port", "").split(","):  # one for each host
            int(port or 0)
    except (psycopg2.ProgrammingError, ValueError):
        # The driver's own words would show a part of the password.
        raise SourceError(
            "DATABASE_URL cannot be read.",
            hint="Write postgresql://user:password@host:port/database; in user and password, write each of"
            " : / ? # [ ] @ % as %XX, e.g. @ as %40.",
        ) from None
    pinned = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    options = f"{given.get('options', '')} {pinned}".strip()
    return {**_PARAMETERS, **given, "options": options, "client_encoding": "UTF8"}


def fetch(
    connection: Connection,
    query: str | Composable,
    arguments: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Return the rows of a query; raises SourceError, SourceLost."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return cursor.fetchall()


def fetch_value(connection: Connection, query: str, arguments: Sequence[Any] | None = None) -> Any:
    """Return the first value of the first row, None where there is none."""
    rows = fetch(connection, query, arguments)
    return rows[0][0] if rows else None


def execute(
    connection: Connection, statement: str | Composable, arguments: Sequence[Any] | None = None
) -> None:
    """Run a statement that returns nothing; raises SourceError, SourceLost."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(statement, arguments)


@contextmanager
def translated(session: Connection | Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raise the driver's errors in our words; the session, or libpq's parameters, goes into the cures."""
    try:
        yield
    except psycopg2.Error as error:
        parameters = parse_dsn(session.dsn) if isinstance(session, Connection) else session
        raise translate(error, parameters or {}) from error
