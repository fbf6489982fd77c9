"""Sessions on MySQL and MariaDB: the only place that opens them and translates the driver's errors."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from pymysql.connections import Connection

from cdc_tasks.passwords import split_url
from listener.core.passwords import password_now
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
_ANSWER_TIMEOUT: Final = 35  # seconds after which a server that does not answer counts as lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The parts of DATABASE_URL."""

    host: str
    port: int
    user: str
    password: str
    database: str | None
    options: dict[str, str]  # with the names of SQLAlchemy's dialect: ssl_ca, unix_socket, …

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse mysql://, mariadb://, and SQLAlchemy's mysql+driver://. Raise SourceError."""
        url, _ = split_url(url)
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
            # The exception's own message would show part of the password.
            raise SourceError(
                "DATABASE_URL cannot be read.",
                hint="Write mysql://user:password@host:port/database; in user and password, write each of"
                " : / ? # [ ] @ % as %XX, e.g. @ as %40.",
                code="database_url",
            ) from None


def connect(url: str, *, read_timeout: float = _ANSWER_TIMEOUT) -> Connection[Any]:
    """Open a session with autocommit, in UTC; raises SourceError, SourceLostError."""
    address = Address.parse(url)
    if (password := password_now(url)) is not None:
        address = replace(address, password=password)
    with translated(address.user):
        connection: Connection[Any] = pymysql.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=(
                address.password if password is None else password
            ).encode(),  # as bytes: the driver would encode a str as latin1
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
    """Return our account, as GRANT names it."""
    return _quoted(str(fetch_value(connection, "SELECT CURRENT_USER()")))


def fetch(
    connection: Connection[Any], query: str, arguments: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of a query; raises SourceError, SourceLostError."""
    with translated(connection), connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return list(cursor.fetchall())


def fetch_value(connection: Connection[Any], query: str, arguments: Sequence[Any] | None = None) -> Any:
    """Return the first value of the first row, None if there is none."""
    rows = fetch(connection, query, arguments)
    return rows[0][0] if rows else None


def execute(connection: Connection[Any], statement: str, arguments: Sequence[Any] | None = None) -> None:
    """Run a statement without using its result; raises SourceError, SourceLostError."""
    fetch(connection, statement, arguments)


@contextmanager
def translated(session: Connection[Any] | str) -> Iterator[None]:
    """Translate the driver's errors into CDCErrors; the hints name the session's user."""
    try:
        yield
    except pymysql.Error as error:
        raise translate(error, _account_for(session, error)) from error
    except (OSError, ssl.SSLError) as error:
        raise translate(pymysql.OperationalError(2013, str(error)), "") from error


def _account_for(session: Connection[Any] | str, error: pymysql.Error) -> str:
    """Return the account as GRANT names it; for a missing privilege, as the server knows it."""
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
    """Return the context that verifies the server, if an authority is named; None: TLS only if the server offers it."""
    authority = options.get("ssl_ca")
    directory = options.get("ssl_capath")
    certificate = options.get("ssl_cert")
    if not (authority or directory or certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=authority, capath=directory)
        # The certificates that the servers generate for themselves do not pass this check.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if options.get("ssl_check_hostname", "true").lower() in {"false", "0", "no", "off"}:
            context.check_hostname = False
        if certificate:
            context.load_cert_chain(certificate, options.get("ssl_key"))
    except (OSError, ssl.SSLError) as error:
        raise SourceError(
            f"The certificates in DATABASE_URL cannot be used: {error}.",
            hint="Check the files of ssl_ca, ssl_capath, ssl_cert and ssl_key.",
            code="tls",
        ) from error
    return context


# --- A session for occasional queries -------------------------------------------------------------------


class Session:
    """Runs queries on a connection that is opened when it is needed: a listener queries rarely, then often in a row."""

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None

    def fetch(self, query: str, arguments: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a read-only query. Raise SourceError, SourceLostError."""
        if self._connection is not None:
            try:
                return fetch(self._connection, query, arguments)
            except SourceLostError:  # the server ends sessions that are idle for a long time
                self.close()
        self._connection = self._connect()
        return fetch(self._connection, query, arguments)

    def close(self) -> None:
        """End the session; the next query opens another one."""
        if self._connection is not None:
            if self._connection.open:
                self._connection.close()
            self._connection = None
