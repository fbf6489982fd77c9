"""The database as tasks see it: one engine per process, errors that say whether trying again may help."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from cdc_tasks.errors import CDCError
from cdc_tasks.retry import TryAgain
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DatabaseAwayError", "DatabaseRefusedError", "engine", "session", "sqlalchemy_url"]

_DRIVERS = {
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
_DENIED = frozenset({1142, 1143, 1227})  # ER_TABLEACCESS_DENIED_ERROR and its like, of MySQL and MariaDB
_WRONG_DATABASE = "is it the right database? The sample's tables: python -m cdc_tasks create-schema"
_CONNECT_TIMEOUT = 5  # seconds
_ANSWER_TIMEOUT = 40  # seconds; below the task's time limit


class DatabaseAwayError(TryAgain):
    """The database did not answer."""


class DatabaseRefusedError(CDCError):
    """The database did not do as asked, and would not do so later."""


class UnknownDatabaseError(CDCError):
    """DATABASE_URL is of a database that the tasks do not know."""


@cache
def engine() -> Engine:
    """Return this process's engine, made when first asked for."""
    url = sqlalchemy_url(worker_settings().database_url.get_secret_value())
    return sqlalchemy.create_engine(
        url,
        connect_args=_connect_args(url),
        pool_pre_ping=True,  # the server was restarted: notice it now, and not in the middle of a task
        pool_recycle=1800,  # MySQL and firewalls drop what is idle for long
        hide_parameters=True,  # values of rows do not belong into an error's text
    )


@contextmanager
def session() -> Iterator[Session]:
    """Open a session; who writes commits. Raises DatabaseAwayError and DatabaseRefusedError."""
    try:
        with Session(engine()) as opened:
            yield opened
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        if isinstance(error, DBAPIError) and _is_denied(error):  # PyMySQL makes an OperationalError of it
            raise _refused(error) from error
        raise DatabaseAwayError(f"The database did not answer: {_first_line(error)}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseAwayError(f"The connection broke: {_first_line(error)}") from error
        raise _refused(error) from error


def _refused(error: DBAPIError) -> DatabaseRefusedError:
    hint = _grants() if _is_denied(error) else _WRONG_DATABASE
    return DatabaseRefusedError(f"The database refused: {_first_line(error)}", hint=hint)


def _is_denied(error: DBAPIError) -> bool:
    """Return whether the role lacks a right: SQLSTATE 42501, or one of MySQL's numbers."""
    original = error.orig
    number = original.args[0] if original is not None and original.args else None
    return getattr(original, "pgcode", None) == "42501" or number in _DENIED


def _grants() -> str:
    """Return the statements that give this role what tasks and commands need; for the tables' owner."""
    url = engine().url
    is_mysql = url.get_backend_name() == "mysql"
    role = f"'{url.username}'" if is_mysql else f'"{url.username}"'
    where, everything = (
        (f"{url.database}.", f"{url.database}.*") if is_mysql else ("", "ALL TABLES IN SCHEMA public")
    )
    written = ("connected_accounts", "notification_preferences")
    statements = [f"GRANT SELECT ON {everything} TO {role};"]
    statements += [f"GRANT INSERT, UPDATE ON {where}{table} TO {role};" for table in written]
    return "\n  ".join(["Let the owner of the tables run:", *statements])


def sqlalchemy_url(url: str) -> URL:
    """Map any DATABASE_URL to the driver that is installed; raises UnknownDatabaseError."""
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
    # A server that is gone without a word is noticed within half a minute, not after the kernel's two hours.
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
    """Drop them unclosed: a connection that two processes speak on is garbage to both."""
    if engine.cache_info().currsize:
        engine().dispose(close=False)
        engine.cache_clear()


os.register_at_fork(after_in_child=_leave_the_parents_connections)
