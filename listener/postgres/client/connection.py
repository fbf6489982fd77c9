"""Opens sessions on PostgreSQL, and translates their errors; no other module does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any, Final

import psycopg2
import psycopg2.errors
from psycopg2.extensions import ConnectionInfo, encodings, parse_dsn
from psycopg2.extensions import connection as Connection  # noqa: N812 - the driver's class has a lower-case name
from psycopg2.extras import LogicalReplicationConnection
from psycopg2.sql import Composable

from cdc_tasks.errors import CDCError
from cdc_tasks.passwords import split_url
from listener.core.passwords import password_now
from listener.core.source import SourceError
from listener.postgres.client.errors import (
    CONNECTING,
    Refusal,
    TooManyConnectionsError,
    error_text,
    find_refusal,
    refused,
    time_limit,
    translate,
)
from listener.postgres.hints import POOLER, SENDERS

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

# What the listener reads and writes depends on these settings. A role's or a database's own settings must not change
# them. libpq sends them when the session starts, and the listener sets them again in the session, because a connection
# pooler may drop start-up settings.
_SESSION: Final = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "pg_catalog",  # the server prints qualified names, and no other function shadows a built-in one
    "statement_timeout": "0",
    "lock_timeout": "0",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",  # psycopg2 would write E'…', which the replication grammar does not accept
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "idle_in_transaction_session_timeout": "0",
    "client_min_messages": "warning",
}

# Settings that only exist since these server versions (in libpq's notation): an older server would refuse them. Both
# end a session that waits. transaction_timeout also ends a WAL sender in the middle of a transaction.
_SINCE: Final = {"idle_session_timeout": 14_00_00, "transaction_timeout": 17_00_00}

_NOT_ACCEPTING: Final = "57P03"  # the server is starting up, shutting down, or not consistent yet
_ESCAPED: Final = r"\ "  # a space within a value of libpq's options
_LISTS: Final = ("host", "hostaddr", "port")  # have one item for each of several hosts

# Defaults: the URL's parameters take precedence. With these a dead connection is detected after half a minute.
_PARAMETERS: Final[Mapping[str, Any]] = {
    "application_name": "cdc-tasks",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


def connect(url: str, *, beside: Connection | None = None) -> Connection:
    """Open an ordinary session with autocommit. Raise SourceError, SourceLostError.

    `beside` is an open session: if the URL names several servers, use the server of that session.
    """
    parameters = _parameters_now(url)
    connection: Connection = _connect(parameters if beside is None else _only(parameters, beside.info))
    with _closed_on_error(connection), translated(connection):
        connection.autocommit = True
        _pin(connection)
    return connection


def connect_replication(url: str) -> LogicalReplicationConnection:
    """Open a session of the replication protocol. Raise SourceError, SourceLostError."""
    try:
        connection: LogicalReplicationConnection = _connect(
            _parameters_now(url), connection_factory=LogicalReplicationConnection
        )
    except TooManyConnectionsError as error:
        if _has_no_senders(url):
            raise SourceError(error.message, hint=SENDERS, code="wal_senders") from error
        raise
    with _closed_on_error(connection), translated(connection):
        _check_protocol(connection)
        _pin(connection)
        if (encoding := _server_encoding(connection)) != "UTF8" and encoding in encodings:
            # Without conversion: the server would stop at the first bytes without a UTF-8 character.
            connection.set_client_encoding("SQL_ASCII")
    return connection


def _connect(parameters: Mapping[str, Any], connection_factory: type[Connection] | None = None) -> Any:
    started = monotonic()
    try:
        return psycopg2.connect(**parameters, connection_factory=connection_factory)
    except CONNECTING as error:
        if connection_factory is not None:
            parameters = {**parameters, "replication": "database"}
        is_silent = monotonic() - started >= time_limit(parameters)  # no host answered: do not wait again
        refusal = Refusal(error_text(error)) if is_silent else find_refusal(parameters)
        raise refused(error_text(error), refusal, parameters) from error


@contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    """Close the connection if the body fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _check_protocol(connection: LogicalReplicationConnection) -> None:
    """Raise SourceError if this is an ordinary session: a pooler may drop the parameter `replication`."""
    with connection.cursor() as cursor:
        try:
            cursor.execute("IDENTIFY_SYSTEM")
        except psycopg2.errors.SyntaxError as error:
            message = "The server does not speak the replication protocol."
            raise SourceError(message, hint=POOLER, code="pooler") from error


def _has_no_senders(url: str) -> bool:
    """Return whether max_wal_senders is 0; an ordinary session needs no WAL sender."""
    try:
        with closing(connect(url)) as connection:
            return bool(fetch_value(connection, "SELECT current_setting('max_wal_senders')") == "0")
    except CDCError:
        return False


def _pin(connection: Connection) -> None:
    since = {name: "0" for name, version in _SINCE.items() if connection.info.server_version >= version}
    calls = ", ".join(
        f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in {**_SESSION, **since}.items()
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {calls}")


def log_codec(connection: LogicalReplicationConnection) -> str:
    """Return Python's name for the encoding of the log's text."""
    encoding = _server_encoding(connection)
    return "utf-8" if encoding in {"UTF8", "SQL_ASCII"} else encodings.get(encoding, "utf-8")


def _server_encoding(connection: Connection) -> str:
    return connection.info.parameter_status("server_encoding") or "UTF8"


def is_shutting_down(url: str, connection: Connection) -> bool:
    """Return whether the connection's server is shutting down; the URL may name several servers."""
    refusal = find_refusal(_only(connection_parameters(url), connection.info))
    return refusal is not None and refusal.sqlstate == _NOT_ACCEPTING


def _only(parameters: Mapping[str, Any], info: ConnectionInfo) -> dict[str, Any]:
    """Return the parameters with only the host of the open session."""
    lists = {name: str(parameters[name]).split(",") for name in _LISTS if parameters.get(name)}
    count = max(map(len, lists.values()), default=1)
    hosts = [
        {name: values[place] if len(values) > 1 else values[0] for name, values in lists.items()}
        for place in range(count)
    ]
    alone = {key: value for key, value in parameters.items() if key != "target_session_attrs"}
    for each in hosts:
        host = each.get("host") or each.get("hostaddr") or info.host
        if host == info.host and int(each.get("port") or info.port) == info.port:
            return {**alone, **each}
    return alone


def _parameters_now(url: str) -> dict[str, Any]:
    """Return libpq's parameters, with the current password."""
    parameters, password = connection_parameters(url), password_now(url)
    return parameters if password is None else {**parameters, "password": password}


def connection_parameters(url: str) -> dict[str, Any]:
    """Return libpq's parameters for a URL, including SQLAlchemy's `postgresql+psycopg2://`."""
    url, _ = split_url(url)
    try:
        given = parse_dsn(_DRIVER.sub(r"\1", url))
        for port in given.get("port", "").split(","):  # one for each host
            int(port or 0)
    except (psycopg2.ProgrammingError, ValueError):
        # The driver's message would show part of the password.
        raise SourceError(
            "DATABASE_URL cannot be read.",
            hint="Write postgresql://user:password@host:port/database; in user and password, write each of"
            " : / ? # [ ] @ % as %XX, e.g. @ as %40.",
            code="database_url",
        ) from None
    pinned = " ".join(f"-c {name}={value.replace(' ', _ESCAPED)}" for name, value in _SESSION.items())
    options = f"{given.get('options', '')} {pinned}".strip()
    return {**_PARAMETERS, **given, "options": options, "client_encoding": "UTF8"}


def fetch(
    connection: Connection,
    query: str | Composable,
    arguments: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Return the rows of a query. Raise SourceError, SourceLostError."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return cursor.fetchall()


def fetch_value(connection: Connection, query: str, arguments: Sequence[Any] | None = None) -> Any:
    """Return the first value of the first row; None if there is no row."""
    rows = fetch(connection, query, arguments)
    return rows[0][0] if rows else None


def execute(
    connection: Connection, statement: str | Composable, arguments: Sequence[Any] | None = None
) -> None:
    """Run a statement that returns no rows. Raise SourceError, SourceLostError."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(statement, arguments)


@contextmanager
def translated(session: Connection | None = None) -> Iterator[None]:
    """Raise the driver's errors as CDCErrors; the hints name the session's role and database."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error, parse_dsn(session.dsn) if session is not None else {}) from error
