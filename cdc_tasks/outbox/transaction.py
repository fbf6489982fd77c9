"""What an application's transaction says in the database's log, on whatever connection the application has."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import Any, Final
from uuid import uuid4

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import CREATE_MARKS, MESSAGE_PREFIX

__all__ = ["MarkError", "check_transaction", "emit"]

# PostgreSQL files a message under the end of its record, and a row under the beginning. Between two subtransactions,
# which it merges by that, a message and the row that follows it are equal, and may come in the wrong order. A second
# message is between them then. The transaction's first message needs none, unless it is in a savepoint: of equals,
# PostgreSQL begins with what is outside of all savepoints.
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
    """Raise MarkError for a connection that commits each statement by itself, and for one that has to be awaited."""
    connection = _unwrapped(connection)
    if _is_async(connection):
        raise MarkError(
            "The connection's calls have to be awaited, and this one is not.",
            hint="With SQLAlchemy: await session.run_sync(cdc_tasks.enqueue, task, …). "
            "Without it, run the SQL statement of docs/enqueue.md.",
            code="mark_async",
        )
    if _commits_each_statement(connection):
        raise MarkError(
            "The connection commits each statement by itself, so a mark would hold for no change.",
            hint="Open a transaction first, e.g. with django.db.transaction.atomic(), or set autocommit = False.",
            code="mark_in_autocommit",
        )


def _is_async(connection: Any) -> bool:
    """Return whether it is an AsyncSession or AsyncConnection, or a connection of an asynchronous driver's."""
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
    """Return whether a connection of psycopg's in autocommit mode is in a transaction that was begun explicitly."""
    return bool(getattr(getattr(connection, "info", None), "transaction_status", 0))


_IN_TRANSACTION: Final = 1  # a flag of the protocol's: BEGIN was called


def emit(connection: Any, content: str) -> None:
    """Let the connection's transaction say something in the log, before the changes that follow; raises MarkError."""
    connection = _unwrapped(connection)
    vendor = _vendor(connection)
    if vendor == "postgresql":
        _emit_message(connection, content, _EMIT if _may_be_in_savepoint(connection) else _EMIT_OUTSIDE)
    elif vendor in _MYSQL:
        _emit_row(connection, content)
    else:
        raise MarkError(
            f"Only PostgreSQL, MySQL and MariaDB take such a mark, and this is {vendor}.",
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
_MYSQL: Final = frozenset({"mysql", "mariadb", "pymysql", "MySQLdb"})  # dialects of SQLAlchemy's, and drivers


def _modules(connection: Any) -> list[str]:
    """Return where its class and those that it is derived from are defined: an application may have one of its own."""
    return [each.__module__ for each in connection.__class__.__mro__]


def _is_sqlalchemy(connection: Any) -> bool:
    return any(module.startswith("sqlalchemy.") for module in _modules(connection))


def _unwrapped(connection: Any) -> Any:
    """Return the driver's connection of one that SQLAlchemy's pool hands out (`engine.raw_connection()`)."""
    return getattr(connection, "dbapi_connection", connection)


def _dialect(connection: Any) -> Any:
    return (connection.get_bind() if hasattr(connection, "get_bind") else connection).dialect


def _sqlalchemy_connection(connection: Any) -> Any:
    """Return the Connection, of a Session that of its transaction."""
    return connection.connection() if hasattr(connection, "get_bind") else connection


def _dbapi_connection(connection: Any) -> Any:
    return _sqlalchemy_connection(connection).connection.dbapi_connection


# --- PostgreSQL: a logical message ----------------------------------------------------------------------


def _may_be_in_savepoint(connection: Any) -> bool:
    """Return whether what follows may be in a savepoint; a driver's connection does not say."""
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


# --- MySQL and MariaDB: a row that the log has, and the table has not ------------------------------------

_NO_TABLE: Final = 1146
_NO_RIGHT: Final = frozenset({1142, 1143, 1044})
_NO_DATABASE: Final = 1046
# Of MySQL alone: it warns of a DELETE from a table of the engine BLACKHOLE, which finds no row.
_WITHOUT_WARNINGS: Final = "/*+ SET_VAR(max_error_count = 0) */ "


def _emit_row(connection: Any, content: str) -> None:
    # Without parameters, which drivers write differently. The content in hexadecimal: it needs no quoting.
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
    """Return whether the server is MariaDB, as far as the connection knows without asking it."""
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
    """Return what the driver's error means, also if SQLAlchemy or Django has wrapped it; None if it is another one."""
    candidates = (error, getattr(error, "orig", None), error.__cause__)
    numbers = {
        each.args[0]
        for each in candidates
        if each is not None and each.args and isinstance(each.args[0], int)
    }
    if numbers & {_NO_TABLE, _NO_DATABASE}:
        return MarkError(
            "There is no table cdc_tasks_marks in the connection's database: a transaction is marked by a row of it.",
            hint=CREATE_MARKS,
            code="mark_no_table",
        )
    if numbers & _NO_RIGHT:
        return MarkError(
            "The account may not mark its transaction by a row of the table cdc_tasks_marks.",
            hint="GRANT SELECT, INSERT, DELETE ON cdc_tasks_marks TO …;",
            code="mark_no_right",
        )
    return None
