"""Logical messages into the transaction of whatever connection an application has."""

from __future__ import annotations

from typing import Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import MESSAGE_PREFIX

__all__ = ["MarkError", "check_transaction", "emit", "vendor_of"]

_EMIT: Final = "SELECT pg_logical_emit_message(true, {prefix}, {content})"


class MarkError(CDCError):
    """The transaction cannot be marked."""


def check_transaction(connection: Any) -> None:
    """Raise MarkError for a connection that commits each statement by itself."""
    is_autocommit = getattr(connection, "autocommit", False) is True
    if hasattr(connection, "in_atomic_block"):  # Django's
        is_autocommit = not connection.in_atomic_block and connection.get_autocommit()
    if is_autocommit:
        raise MarkError(
            "The connection commits each statement by itself, so a mark would hold for no change.",
            hint="Open a transaction first, e.g. with django.db.transaction.atomic(), or set autocommit = False.",
            code="mark_in_autocommit",
        )


def emit(connection: Any, content: str) -> None:
    """Write a logical message into the connection's transaction; raises MarkError on another database."""
    values = {"prefix": MESSAGE_PREFIX, "content": content}
    vendor = vendor_of(connection)
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


def vendor_of(connection: Any) -> str:
    """Return the kind of the database: postgresql, or another name."""
    if isinstance(name := getattr(connection, "vendor", None), str):  # Django's
        return name
    if type(connection).__module__.startswith("sqlalchemy."):
        bind = connection.get_bind() if hasattr(connection, "get_bind") else connection
        return str(bind.dialect.name)
    module = type(connection).__module__.partition(".")[0]
    return "postgresql" if module.startswith(("psycopg", "pg8000")) else module
