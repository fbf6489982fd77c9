"""Runs a person's SQL on the demo's database, as a separate client would."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cdc_tasks.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine
    from sqlalchemy.engine import URL

__all__ = ["Result", "Statements"]

_MOST_ROWS: Final = 50
_LONGEST: Final = 200  # characters of a value
_SECONDS: Final = 10  # limit for a statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The database's answer."""

    words: str
    is_error: bool = False
    seconds: float = 0.0
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)


class Statements:
    """Runs statements, each time in a new session, so that no transaction and no setting is left over."""

    def __init__(self, url: URL) -> None:
        self._is_mysql = url.get_backend_name() == "mysql"
        self._engine = _engine(url, is_mysql=self._is_mysql)

    def run(self, sql: str) -> Result:
        """Run one statement, or several separated by semicolons. An error is a result too."""
        began = time.monotonic()
        try:
            with closing(self._engine.raw_connection()) as connection:
                driver: Any = connection.driver_connection
                (driver.autocommit(True) if self._is_mysql else driver.set_session(autocommit=True))
                with closing(driver.cursor()) as cursor:
                    columns, rows, words = self._answers(cursor, sql)
                if self._is_left_open(driver):
                    words += (
                        " The transaction was left open, so it has been rolled back: write COMMIT at its end."
                    )
        except Exception as error:  # noqa: BLE001 - each driver has its own classes
            return Result(words=_described(error), is_error=True, seconds=time.monotonic() - began)
        return Result(words=words, seconds=time.monotonic() - began, columns=columns, rows=rows)

    def _answers(self, cursor: Any, sql: str) -> tuple[list[str], list[list[str]], str]:
        """Return the columns and rows of the last answer that has any, and a summary of all answers."""
        cursor.execute(sql)
        columns, rows, number = _rows_of(cursor)
        while self._is_mysql and cursor.nextset():  # PostgreSQL returns only the last answer
            following = _rows_of(cursor)
            columns, rows = following[:2] if following[0] else (columns, rows)
            number += following[2]
        if columns:
            more = f", the first {_MOST_ROWS} are shown" if number > _MOST_ROWS else ""
            return columns, rows, f"{counted(number, 'row')}{more}."
        status = getattr(cursor, "statusmessage", None) or ""
        if number <= 0 and status and not status[-1].isdigit():
            return [], [], f"Done: {status}."
        return [], [], f"{counted(max(number, 0), 'row')} changed."

    def _is_left_open(self, driver: Any) -> bool:
        if self._is_mysql:
            return bool(driver.server_status & 1)  # SERVER_STATUS_IN_TRANS
        return bool(driver.info.transaction_status != 0)  # PQTRANS_IDLE


def _engine(url: URL, *, is_mysql: bool) -> Engine:
    if is_mysql:
        from pymysql.constants import CLIENT

        arguments: dict[str, Any] = {"client_flag": CLIENT.MULTI_STATEMENTS, "read_timeout": _SECONDS}
    else:
        arguments = {"options": f"-c statement_timeout={_SECONDS * 1000}"}
    return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5, **arguments})


def _rows_of(cursor: Any) -> tuple[list[str], list[list[str]], int]:
    if cursor.description is None:
        return [], [], max(cursor.rowcount, 0)
    rows = [[_shown(value) for value in row] for row in cursor.fetchmany(_MOST_ROWS)]
    return [column[0] for column in cursor.description], rows, cursor.rowcount


def _shown(value: Any) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _described(error: Exception) -> str:
    """Return the database's own message."""
    original = error.orig if isinstance(error, DBAPIError) else error
    words = original.args[-1] if original is not None and original.args else error
    return str(words).strip() or type(error).__name__
