"""The tasks' database: one engine per process, and errors that show whether a retry may help."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from cdc_tasks.errors import CDCError
from cdc_tasks.extras import needs_extras
from cdc_tasks.passwords import PasswordError, PasswordSource, split_url
from cdc_tasks.retry import TryAgain
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DatabaseAwayError", "DatabaseRefusedError", "engine", "reading", "session", "sqlalchemy_url"]

_DRIVERS = {
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
_DENIED = frozenset({1142, 1143, 1227})  # ER_TABLEACCESS_DENIED_ERROR and similar, of MySQL and MariaDB
_WRONG_DATABASE = "is it the right database? The sample's tables: python -m cdc_tasks create-schema"
_CONNECT_TIMEOUT = 5  # seconds
_ANSWER_TIMEOUT = 40  # seconds; below the task's time limit


class DatabaseAwayError(TryAgain):
    """The database did not answer."""


class DatabaseRefusedError(CDCError):
    """The database refused a statement, and would refuse it again."""


class UnknownDatabaseError(CDCError):
    """The tasks do not support the database of DATABASE_URL."""


@cache
def engine() -> Engine:
    """Return this process's engine, created on first use."""
    plain, source = split_url(worker_settings().database_url.get_secret_value())
    url = sqlalchemy_url(plain)
    with needs_extras():  # SQLAlchemy imports the driver
        made = sqlalchemy.create_engine(
            url,
            connect_args=_connect_args(url),
            pool_pre_ping=True,  # detects a restarted server before a task begins, not in the middle of it
            pool_recycle=1800,  # MySQL and firewalls drop idle connections
            hide_parameters=True,  # an error's text must not contain values of rows
        )
    if source is not None:
        sqlalchemy.event.listen(made, "do_connect", partial(_give_password, source))
    return made


def _give_password(
    source: PasswordSource, _dialect: object, _record: object, _given: object, options: dict[str, Any]
) -> None:
    """Connect with the current password. Raises DatabaseAwayError, PasswordError."""
    try:
        options["password"] = source.password()
    except PasswordError as error:
        if not error.may_pass:
            raise
        raise DatabaseAwayError(error.message, hint=error.hint) from error


@contextmanager
def session() -> Iterator[Session]:
    """Open a session; the caller commits. Raises DatabaseAwayError and DatabaseRefusedError."""
    with _opened(engine()) as opened:
        yield opened


@contextmanager
def reading() -> Iterator[Session]:
    """Open a session for SELECTs that need no common snapshot. Raises the same as `session`.

    On PostgreSQL it has no transaction, which saves the two round trips for begin and commit.
    """
    with _opened(_without_transactions(engine())) as opened:
        yield opened


@lru_cache(maxsize=1)
def _without_transactions(ours: Engine) -> Engine:
    """Return an engine with the same pool. With drivers other than psycopg2, autocommit itself takes round trips."""
    if ours.dialect.driver != "psycopg2":
        return ours
    return ours.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def _opened(on: Engine) -> Iterator[Session]:
    try:
        with Session(on) as opened:
            yield opened
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        if isinstance(error, DBAPIError) and _is_denied(error):  # PyMySQL raises OperationalError for it
            raise _refused(error) from error
        raise DatabaseAwayError(
            f"The database did not answer: {_first_line(error)}", hint="Start it, or correct DATABASE_URL."
        ) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseAwayError(f"The connection broke: {_first_line(error)}") from error
        raise _refused(error) from error


def _refused(error: DBAPIError) -> DatabaseRefusedError:
    hint = _grants() if _is_denied(error) else _WRONG_DATABASE
    return DatabaseRefusedError(f"The database refused: {_first_line(error)}", hint=hint)


def _is_denied(error: DBAPIError) -> bool:
    """Return whether the role lacks a privilege: SQLSTATE 42501, or one of MySQL's error numbers."""
    original = error.orig
    number = original.args[0] if original is not None and original.args else None
    return getattr(original, "pgcode", None) == "42501" or number in _DENIED


def _grants() -> str:
    """Return the statements that grant this role the privileges that tasks and commands need."""
    url = engine().url
    is_mysql = url.get_backend_name() == "mysql"
    role = f"'{url.username}'" if is_mysql else f'"{url.username}"'
    where, everything = (
        (f"{url.database}.", f"{url.database}.*") if is_mysql else ("", "ALL TABLES IN SCHEMA public")
    )
    written = ("connected_accounts", "notification_preferences")
    statements = [f"GRANT SELECT ON {everything} TO {role};"]
    statements += [f"GRANT INSERT, UPDATE ON {where}{table} TO {role};" for table in written]
    return "\n  ".join(["As the owner of the tables, run:", *statements])


def sqlalchemy_url(url: str) -> URL:
    """Return the URL with the installed driver. Raises UnknownDatabaseError."""
    scheme, _, rest = url.partition("://")
    driver = _DRIVERS.get(scheme.partition("+")[0])
    if driver is None:
        raise UnknownDatabaseError(
            f"DATABASE_URL starts with {scheme}://, which is neither PostgreSQL nor MySQL.",
            hint="postgresql://user:password@host:5432/name or mysql://user:password@host:3306/name",
        )
    mapped = make_url(f"{driver}://{rest}")
    return mapped.update_query_dict({"charset": "utf8mb4"}) if driver == "mysql+pymysql" else mapped


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "mysql":
        return {
            "connect_timeout": _CONNECT_TIMEOUT,
            "read_timeout": _ANSWER_TIMEOUT,
            "write_timeout": _ANSWER_TIMEOUT,
        }
    # A vanished server is detected within half a minute; with the kernel's default it takes two hours.
    keepalive = {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25000,
    }
    return {"connect_timeout": _CONNECT_TIMEOUT, **keepalive}


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _leave_the_parents_connections() -> None:
    """After a fork, drop the engine without closing its connections, which the parent still uses."""
    if engine.cache_info().currsize:
        engine().dispose(close=False)
        engine.cache_clear()


os.register_at_fork(after_in_child=_leave_the_parents_connections)
