"""Changes that fire nothing: a transaction says so in the database's log."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MarkError", "muted"]

_PREFIX: Final = "cdc_tasks"
_EMIT: Final = "SELECT pg_logical_emit_message(true, {prefix}, {content})"


class MarkError(CDCError):
    """The transaction cannot be marked."""


@contextmanager
def muted(connection: Any) -> Iterator[None]:
    """Let the changes of the block fire nothing, but for routes with `even_muted=True`.

    `connection` is what the block's changes are made with, inside a transaction: a Session or Connection of
    SQLAlchemy's, a connection of Django's, or a DB-API connection (psycopg 2 and 3). The changes are committed as ever,
    and the listener leaves them out. In plain SQL, within the transaction:

        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": true}');
        …
        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": false}');   -- not needed at the end

    PostgreSQL 14 and later, or 13 with wal2json. It needs no right beyond those of any role. Raises MarkError on
    another database, and for a connection in autocommit mode: there each statement is a transaction of its own.
    """
    _refuse_autocommit(connection)
    _emit(connection, {"mute": True})
    yield
    _emit(connection, {"mute": False})


def _refuse_autocommit(connection: Any) -> None:
    is_autocommit = getattr(connection, "autocommit", False) is True
    if hasattr(connection, "in_atomic_block"):  # Django's
        is_autocommit = not connection.in_atomic_block and connection.get_autocommit()
    if is_autocommit:
        raise MarkError(
            "The connection commits each statement by itself, so a mark would hold for no change.",
            hint="Open a transaction first, e.g. with django.db.transaction.atomic(), or set autocommit = False.",
            code="mark_in_autocommit",
        )


def _emit(connection: Any, content: dict[str, Any]) -> None:
    """Write a logical message into the connection's transaction."""
    values = {"prefix": _PREFIX, "content": json.dumps(content)}
    vendor = _vendor(connection)
    if vendor != "postgresql":
        raise MarkError(
            f"Only PostgreSQL takes such a mark, and this is {vendor}.",
            hint="On MySQL and MariaDB, pause the routes: python -m listener pause ROUTE, and skip ROUTE --until now.",
            code="mark_unsupported",
        )
    if type(connection).__module__.startswith("sqlalchemy."):
        import sqlalchemy

        connection.execute(sqlalchemy.text(_EMIT.format(prefix=":prefix", content=":content")), values)
        return
    cursor = connection.cursor()
    try:
        cursor.execute(_EMIT.format(prefix="%(prefix)s", content="%(content)s"), values)
    finally:
        cursor.close()


def _vendor(connection: Any) -> str:
    """Return the kind of the database: postgresql, or another name."""
    if isinstance(name := getattr(connection, "vendor", None), str):  # Django's
        return name
    if type(connection).__module__.startswith("sqlalchemy."):
        bind = connection.get_bind() if hasattr(connection, "get_bind") else connection
        return str(bind.dialect.name)
    module = type(connection).__module__.partition(".")[0]
    return "postgresql" if module.startswith(("psycopg", "pg8000")) else module
