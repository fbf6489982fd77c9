"""Names of tables, given as text or as a SQLAlchemy or Django model; neither library is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cdc_tasks.errors import CDCError

__all__ = ["RouteError", "TableName", "all_tables", "table_of"]


class RouteError(CDCError):
    """A route cannot be registered as written."""


class TableName(NamedTuple):
    """A table's name, or a glob."""

    schema: str | None  # None: the home schema
    table: str


def all_tables(tables: Any) -> tuple[TableName, ...]:
    """Return the tables that `on_change` names: one, or a list. A text may have a schema before a dot.

    Raises RouteError.
    """
    several = tables if isinstance(tables, list | tuple | set | frozenset) else [tables]
    if not several:
        raise RouteError(
            f"on_change({tables!r}) does not name a table.", hint='Write e.g. on_change("orders_order").'
        )
    return tuple(map(_named, sorted(several, key=str) if isinstance(tables, set | frozenset) else several))


def _named(table: Any) -> TableName:
    if not isinstance(table, str):
        return table_of(table)
    schema, dot, name = table.partition(".")
    if not name.strip() if dot else not table.strip():
        raise RouteError(f"{table!r} is not the name of a table.", hint='Write "table", or "schema.table".')
    return TableName(schema, name) if dot else TableName(None, table)


def table_of(table: Any) -> TableName:
    """Return the name of a table that is given as a text or as a model; a text is not changed. Raises RouteError."""
    if isinstance(table, str):
        return TableName(None, table)
    if (meta := getattr(table, "_meta", None)) is not None and hasattr(meta, "db_table"):
        return _of_django(table, meta)
    found = getattr(table, "__table__", table)
    if isinstance(name := getattr(found, "name", None), str) and hasattr(found, "schema"):
        return TableName(found.schema, name)
    if isinstance(name := getattr(table, "__tablename__", None), str):  # a mixin, or not mapped yet
        return TableName(_schema_of(getattr(table, "__table_args__", None)), name)
    raise RouteError(
        f"{table!r} is not a table.",
        hint="Give its name, or a SQLAlchemy or Django model that has a table.",
    )


def _of_django(model: Any, meta: Any) -> TableName:
    if getattr(meta, "abstract", False) or not meta.db_table:
        raise RouteError(
            f"The model {model.__name__} is abstract and has no table.",
            hint="Name the models that inherit from it.",
        )
    schema, quoted, name = meta.db_table.partition('"."')  # the usual way to name a schema: 'schema"."table'
    return TableName(schema.strip('"'), name.strip('"')) if quoted else TableName(None, meta.db_table)


def _schema_of(arguments: Any) -> str | None:
    """Return the schema in SQLAlchemy's `__table_args__`: a dict, or a tuple that ends with one."""
    parts: Iterable[Any] = arguments if isinstance(arguments, tuple) else [arguments]
    return next((part["schema"] for part in parts if isinstance(part, dict) and "schema" in part), None)
