"""Sessions on MySQL and MariaDB: made here, and their errors put into our words here, once."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from pymysql.connections import Connection

from listener.core.source import SourceError, SourceLostError
from listener.mysql.errors import is_about_permissions, translate

__all__ = [
    "Address",
    "Connection",
    "Session",
    "account",
    "connect",
    "execute",
    "fetch",
    "fetch_value",
    "translated",
]

_CONNECT_TIMEOUT: Final = 10  # seconds
_ANSWER_TIMEOUT: Final = 35  # seconds: a server that is gone without a word is noticed after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What DATABASE_URL says."""

    host: str
    port: int
    user: str
    password: str
    database: str | None
    options: dict[str, str]  # as SQLAlchemy's dialect names them: ssl_ca, ssl_check_hostname, unix_socket, …

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read mysql://, mariadb://, and SQLAlchemy's mysql+driver://; raises SourceError."""
        try:
            parts = urlsplit(url)
            return cls(
                host=unquote(parts.hostname or "localhost"),
                port=parts.port or 3306,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                database=unquote(parts.path.lstrip("/")) or None,
                options=dict(parse_qsl(parts.query)),
            )
        except ValueError:
            # The exception's own words would show a part of the password.
            raise SourceError(
                "DATABASE_URL cannot be read.",
                hint="Write mysql://user:password@host:port/database; in user and password, write each of"
                " : / ? # [ ] @ % as %XX, e.g. @ as %40.",
            ) from None


def connect(url: str, *, read_timeout: float = _ANSWER_TIMEOUT) -> Connection[Any]:
    """Open a session with autocommit, in UTC; raises SourceError, SourceLostError."""
    address = Address.parse(url)
    with translated(address.user):
        connection: Connection[Any] = pymysql.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password.encode(),  # as bytes: the driver would make latin1 of a str
            database=address.database,
            unix_socket=address.options.get("unix_socket"),
            ssl=_tls(address.options),
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            write_timeout=_ANSWER_TIMEOUT,
            program_name="cdc-tasks",
            init_command="SET time_zone = '+00:00', sql_mode = '', net_write_timeout = 3600",
        )
    return connection


def account(connection: Connection[Any]) -> str:
    """Return who we are to the server, as GRANT names it."""
    return _quoted(str(fetch_value(connection, "SELECT CURRENT_USER()")))


def fetch(
    connection: Connection[Any], query: str, arguments: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of a query; raises SourceError, SourceLostError."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return list(cursor.fetchall())


def fetch_value(connection: Connection[Any], query: str, arguments: Sequence[Any] | None = None) -> Any:
    """Return the first value of the first row, None where there is none."""
    rows = fetch(connection, query, arguments)
    return rows[0][0] if rows else None


def execute(connection: Connection[Any], statement: str, arguments: Sequence[Any] | None = None) -> None:
    """Run a statement whose answer does not matter; raises SourceError, SourceLostError."""
    fetch(connection, statement, arguments)


@contextmanager
def translated(session: Connection[Any] | str) -> Iterator[None]:
    """Raise the driver's errors in our words; the session's user goes into the hints."""
    try:
        yield
    except pymysql.Error as error:
        raise translate(error, _account_for(session, error)) from error
    except (OSError, ssl.SSLError) as error:
        raise translate(pymysql.err.OperationalError(2013, str(error)), "") from error


def _account_for(session: Connection[Any] | str, error: pymysql.Error) -> str:
    """Return the account as GRANT names it: where that matters, as the server has it."""
    if not isinstance(session, str) and is_about_permissions(error):
        with suppress(pymysql.Error, OSError), session.cursor() as cursor:
            cursor.execute("SELECT CURRENT_USER()")
            return _quoted(str(cursor.fetchall()[0][0]))
    name = session if isinstance(session, str) else session.user
    return f"'{name.decode(errors='replace') if isinstance(name, bytes) else name}'@'%'"


def _quoted(name: str) -> str:
    user, _, host = name.rpartition("@")
    return f"'{user}'@'{host}'"


def _tls(options: dict[str, str]) -> ssl.SSLContext | None:
    """Return the context that verifies the server where an authority is named; None: TLS if the server has it."""
    authority = options.get("ssl_ca")
    directory = options.get("ssl_capath")
    certificate = options.get("ssl_cert")
    if not (authority or directory or certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=authority, capath=directory)
        # The certificates that the servers make for themselves do not pass this one.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if options.get("ssl_check_hostname", "true").lower() in {"false", "0", "no", "off"}:
            context.check_hostname = False
        if certificate:
            context.load_cert_chain(certificate, options.get("ssl_key"))
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            f"The certificates in DATABASE_URL cannot be used: {error}.",
            hint="Check the files of ssl_ca, ssl_capath, ssl_cert and ssl_key.",
        ) from error
    return context


# --- A session for questions in between -----------------------------------------------------------------


class Session:
    """Asks the server; a listener asks seldom, and then about many things in a row."""

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None

    def fetch(self, query: str, arguments: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query that changes nothing; raises SourceError, SourceLostError."""
        if self._connection is not None:
            try:
                return fetch(self._connection, query, arguments)
            except SourceLostError:  # the server ends sessions that are idle for long
                self.close()
        self._connection = self._connect()
        return fetch(self._connection, query, arguments)

    def close(self) -> None:
        """End the session; the next question opens another."""
        if self._connection is not None:
            if self._connection.open:
                self._connection.close()
            self._connection = None
