"""Writes messages of an application's transaction into the database's log, on any kind of connection."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import Any, Final
from uuid import uuid4

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import CREATE_MARKS, MESSAGE_PREFIX

__all__ = ["MarkError", "check_transaction", "emit"]

# PostgreSQL orders a message by the end of its log record, and a row by the beginning of its record. It merges
# subtransactions by these positions. So a message and the row after it have equal positions, and may come in the wrong
# order if they belong to two subtransactions. A second message separates them. The transaction's first message needs
# none, unless it is in a savepoint: for equal positions PostgreSQL begins with what is outside of all savepoints.
_EMIT: Final = (
    "SELECT pg_logical_emit_message(true, {prefix}, {content}), "
    "pg_logical_emit_message(true, 'cdc_tasks_spacer', '')"
)
_EMIT_OUTSIDE: Final = (
    "SELECT pg_logical_emit_message(true, {prefix}, {content}), "
    "CASE WHEN has_written THEN pg_logical_emit_message(true, 'cdc_tasks_spacer', '') END "
    "FROM (SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS has_written OFFSET 0) AS before"
)


class MarkError(CDCError):
    """The transaction cannot be marked."""


def check_transaction(connection: Any) -> None:
    """Raise MarkError for a connection that commits each statement by itself, and for an asynchronous one."""
    connection = _unwrapped(connection)
    if _is_async(connection):
        raise MarkError(
            "The connection is asynchronous, and this call does not await it.",
            hint="With SQLAlchemy: await session.run_sync(cdc_tasks.enqueue, task, …). "
            "Without it, run the SQL statement of docs/enqueue.md.",
            code="mark_async",
        )
    if _commits_each_statement(connection):
        raise MarkError(
            "The connection commits each statement by itself, so the mark would apply to no change.",
            hint="Open a transaction first, e.g. with django.db.transaction.atomic(), or set autocommit = False.",
            code="mark_in_autocommit",
        )


def _is_async(connection: Any) -> bool:
    """Return whether it is an AsyncSession, an AsyncConnection, or a connection of an asynchronous driver."""
    modules = _modules(connection)
    return (
        any(each.startswith(("sqlalchemy.ext.asyncio", "asyncpg.")) for each in modules)
        or iscoroutinefunction(getattr(connection, "commit", None))
    )  # fmt: skip


def _commits_each_statement(connection: Any) -> bool:
    if hasattr(connection, "in_atomic_block"):  # Django's
        return not connection.in_atomic_block and bool(connection.get_autocommit())
    if _is_sqlalchemy(connection):
        connection = _dbapi_connection(connection)
    if callable(ask := getattr(connection, "get_autocommit", None)):  # PyMySQL's, mysqlclient's
        return bool(ask()) and not getattr(connection, "server_status", 0) & _IN_TRANSACTION
    return getattr(connection, "autocommit", False) is True and not _has_begun(connection)


def _has_begun(connection: Any) -> bool:
    """Return whether a psycopg connection in autocommit mode is in a transaction that was begun explicitly."""
    return bool(getattr(getattr(connection, "info", None), "transaction_status", 0))


_IN_TRANSACTION: Final = 1  # a flag of the protocol: BEGIN was executed


def emit(connection: Any, content: str) -> None:
    """Write a message of the connection's transaction into the log, before its next changes. Raises MarkError."""
    connection = _unwrapped(connection)
    vendor = _vendor(connection)
    if vendor == "postgresql":
        _emit_message(connection, content, _EMIT if _may_be_in_savepoint(connection) else _EMIT_OUTSIDE)
    elif vendor in _MYSQL:
        _emit_row(connection, content)
    else:
        raise MarkError(
            f"Only PostgreSQL, MySQL and MariaDB support such a mark, and this is {vendor}.",
            hint="Pause the routes: python -m listener pause ROUTE, and skip ROUTE --until now.",
            code="mark_unsupported",
        )


def _vendor(connection: Any) -> str:
    """Return the kind of the database: postgresql, mysql, or another name."""
    if isinstance(name := getattr(connection, "vendor", None), str):  # Django's
        return name
    if _is_sqlalchemy(connection):
        return str(_dialect(connection).name)
    modules = [module.partition(".")[0] for module in _modules(connection)]
    if _POSTGRES.intersection(modules):
        return "postgresql"
    return next((each for each in modules if each in _MYSQL), modules[0])


_POSTGRES: Final = frozenset({"psycopg", "psycopg2"})  # drivers
_MYSQL: Final = frozenset({"mysql", "mariadb", "pymysql", "MySQLdb"})  # SQLAlchemy dialects, and drivers


def _modules(connection: Any) -> list[str]:
    """Return the modules of its class and of the base classes: an application may have its own class."""
    return [each.__module__ for each in connection.__class__.__mro__]


def _is_sqlalchemy(connection: Any) -> bool:
    return any(module.startswith("sqlalchemy.") for module in _modules(connection))


def _unwrapped(connection: Any) -> Any:
    """Return the driver's connection of one from SQLAlchemy's pool (`engine.raw_connection()`)."""
    return getattr(connection, "dbapi_connection", connection)


def _dialect(connection: Any) -> Any:
    return (connection.get_bind() if hasattr(connection, "get_bind") else connection).dialect


def _sqlalchemy_connection(connection: Any) -> Any:
    """Return the Connection; for a Session, that of its transaction."""
    return connection.connection() if hasattr(connection, "get_bind") else connection


def _dbapi_connection(connection: Any) -> Any:
    return _sqlalchemy_connection(connection).connection.dbapi_connection


# --- PostgreSQL: a logical message ----------------------------------------------------------------------


def _may_be_in_savepoint(connection: Any) -> bool:
    """Return whether the next statement may be in a savepoint; a driver's connection does not show it."""
    if hasattr(connection, "savepoint_ids"):  # Django's
        return bool(connection.savepoint_ids)
    if _is_sqlalchemy(connection):
        return bool(_sqlalchemy_connection(connection).in_nested_transaction())
    return True


def _emit_message(connection: Any, content: str, statement: str) -> None:
    values = {"prefix": MESSAGE_PREFIX, "content": content}
    if _is_sqlalchemy(connection):
        import sqlalchemy

        connection.execute(sqlalchemy.text(statement.format(prefix=":prefix", content=":content")), values)
        return
    cursor = connection.cursor()
    try:
        cursor.execute(statement.format(prefix="%(prefix)s", content="%(content)s"), values)
    finally:
        cursor.close()


# --- MySQL and MariaDB: a row that is only in the log ----------------------------------------------------

_NO_TABLE: Final = 1146
_NO_RIGHT: Final = frozenset({1142, 1143, 1044})
_NO_DATABASE: Final = 1046
# For MySQL only: it warns about a DELETE from a BLACKHOLE table, which finds no row.
_WITHOUT_WARNINGS: Final = "/*+ SET_VAR(max_error_count = 0) */ "


def _emit_row(connection: Any, content: str) -> None:
    # Without parameters, because drivers write them differently. The content is hexadecimal, so it needs no quoting.
    name, says = uuid4(), content.encode().hex()
    hint = "" if _is_mariadb(connection) else _WITHOUT_WARNINGS
    try:
        _run(connection, f"INSERT INTO cdc_tasks_marks (id, says) VALUES ('{name}', X'{says}')")  # noqa: S608
        _run(connection, f"DELETE {hint}FROM cdc_tasks_marks WHERE id = '{name}'")
    except Exception as error:
        if (reason := _explained(error)) is None:
            raise
        raise reason from error


def _is_mariadb(connection: Any) -> bool:
    """Return whether the server is MariaDB, as far as the connection knows without a query."""
    if _is_sqlalchemy(connection):
        return bool(getattr(_dialect(connection), "is_mariadb", False))
    driver = getattr(connection, "connection", None) or connection  # the first is Django's
    version = getattr(driver, "get_server_info", str)()
    return "mariadb" in str(version).lower()


def _run(connection: Any, statement: str) -> None:
    if _is_sqlalchemy(connection):
        _sqlalchemy_connection(connection).exec_driver_sql(statement)
        return
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def _explained(error: Exception) -> MarkError | None:
    """Return what the driver's error means, even wrapped by SQLAlchemy or Django; None for other errors."""
    candidates = (error, getattr(error, "orig", None), error.__cause__)
    numbers = {
        each.args[0]
        for each in candidates
        if each is not None and each.args and isinstance(each.args[0], int)
    }
    if numbers & {_NO_TABLE, _NO_DATABASE}:
        return MarkError(
            "The connection's database has no table cdc_tasks_marks, which is needed to mark a transaction.",
            hint=CREATE_MARKS,
            code="mark_no_table",
        )
    if numbers & _NO_RIGHT:
        return MarkError(
            "The account may not write to the table cdc_tasks_marks, which is needed to mark a transaction.",
            hint="GRANT SELECT, INSERT, DELETE ON cdc_tasks_marks TO …;",
            code="mark_no_right",
        )
    return None
