"""Table data found only in MariaDB's catalogue: its log does not have everything.

In the log a UUID looks like a BINARY, and a JSON like a LONGTEXT. The old form of the temporal types
(`mysql56_temporal_format=OFF`) has no number of digits there. The columns that the server adds by itself, and
those of WITH SYSTEM VERSIONING, look like any other. MySQL's log has everything.

The catalogue shows the current tables, but the log is read slightly later. So the listener looks up all tables at the
start, and a table again when a statement in the log may have changed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from cdc_tasks.routing.router import Route
from listener.mysql.client.connection import Session
from listener.mysql.codec.column_layout import CatalogueColumn
from listener.mysql.codec.table_map import OLD_TEMPORAL, Column, ColumnType, TableMap

__all__ = ["JSON_CHECK", "Definition", "Definitions", "needs_catalogue"]

_T = ColumnType

JSON_CHECK: Final = re.compile(r"json_valid\(`((?:[^`]|``)+)`\)", re.IGNORECASE)
_SEQUENCE: Final = (
    *("next_not_cached_value", "minimum_value", "maximum_value", "start_value"),
    *("increment", "cache_size", "cycle_option", "cycle_count"),
)
_HASH: Final = re.compile(r"DB_ROW_HASH_\d+")  # of a UNIQUE over a TEXT or BLOB
_ROW_START, _ROW_END = "row_start", "row_end"  # the server's names, for a table that gives none


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A table as it is now; without columns if there is no such table, or the account may not see it."""

    kind: str = ""  # BASE TABLE, SYSTEM VERSIONED, SEQUENCE, …
    columns: Mapping[str, CatalogueColumn] = field(default_factory=dict)

    def type_of(self, column: str) -> str:
        """Return the column's type, empty if it is not known."""
        known = self.columns.get(column)
        return known.type if known else ""

    def is_sequence(self, table: TableMap) -> bool:
        """Return whether the table holds only the state of a SEQUENCE."""
        return _looks_like_sequence(table) and self.kind in {"SEQUENCE", ""}

    def row_end(self, table: TableMap) -> str:
        """Return the column with the end of a row's validity; empty for a table without system versioning."""
        for column in table.columns:
            known = self.columns.get(column.name)
            if known.is_row_end if known else _has_own_period(table) and column.name == _ROW_END:
                return column.name
        return ""

    def hidden(self, table: TableMap) -> frozenset[str]:
        """Return the names of the columns that the server added by itself and that no SELECT shows."""
        own_period = {_ROW_START, _ROW_END} if _has_own_period(table) else set()
        return frozenset(
            column.name
            for column in table.columns
            if column.name not in self.columns and (column.name in own_period or _is_hash(column))
        )


def needs_catalogue(table: TableMap, *, is_selected: bool) -> bool:
    """Return whether the log lacks something: of a table that no route selects, only the length of its rows matters."""
    columns = table.columns
    if not is_selected:
        return any(column.type in OLD_TEMPORAL for column in columns)
    return (
        any(_is_ambiguous(column) or _is_hash(column) for column in columns)
        or sum(map(_may_be_of_period, columns)) >= 2
        or _looks_like_sequence(table)
    )


class Definitions:
    """Definitions of tables, cached from the start until a statement in the log may have changed them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: dict[tuple[str, str], Definition] = {}

    def keep(self, routes: Sequence[Route]) -> None:
        """Look up all tables in the schemas that the routes name; raises SourceError, SourceLostError."""
        patterns = {route.schema for route in routes}
        for (schema,) in self._session.fetch("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA"):
            if any(fnmatchcase(str(schema), pattern) for pattern in patterns):
                self._kept.update(self._read(" = %s", [str(schema)]))

    def forget(self, statement: bytes) -> None:
        """Drop the tables that a statement names and may have changed: they are looked up again when needed."""
        text = statement.decode(errors="backslashreplace").lower()
        for name in [name for name in self._kept if _may_name(text, name[1].lower())]:
            del self._kept[name]

    def of(self, table: TableMap) -> Definition:
        """Return a table; raises SourceError, SourceLostError."""
        name = table.schema, table.name
        try:
            return self._kept[name]
        except KeyError:
            return self._read(" = %s AND TABLE_NAME = %s", list(name)).get(name, Definition())

    def _read(self, condition: str, arguments: list[str]) -> dict[tuple[str, str], Definition]:
        """Return the tables, with the columns that the log does not distinguish from others."""
        tables = self._session.fetch(_TABLES + condition, arguments)
        columns: dict[tuple[str, str], dict[str, CatalogueColumn]] = {}
        for schema, table, column, *rest in self._session.fetch(_COLUMNS + condition, arguments):
            columns.setdefault((str(schema), str(table)), {})[str(column)] = _column(*rest)
        checks = self._session.fetch(_CHECKS + condition, arguments)
        for schema, table, clause in checks:
            if match := JSON_CHECK.fullmatch(str(clause)):
                name = match[1].replace("``", "`")
                columns.setdefault((str(schema), str(table)), {})[name] = CatalogueColumn("json")
        return {
            (str(schema), str(table)): Definition(
                kind=str(kind), columns=columns.get((str(schema), str(table)), {})
            )
            for schema, table, kind in tables
        }


_TABLES: Final = (
    "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA"
)
_COLUMNS: Final = (
    "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, DATA_TYPE, DATETIME_PRECISION, COLUMN_TYPE LIKE '%%mariadb-5.3%%',"
    " GENERATION_EXPRESSION FROM information_schema.COLUMNS WHERE (DATA_TYPE IN ('uuid', 'inet4', 'inet6')"
    " OR COLUMN_TYPE LIKE '%%mariadb-5.3%%' OR GENERATION_EXPRESSION = 'ROW END'"
    " OR COLUMN_NAME IN ('row_start', 'row_end') OR COLUMN_NAME LIKE 'DB#_ROW#_HASH#_%%' ESCAPE '#')"
    " AND TABLE_SCHEMA"
)
# To MariaDB, JSON is a LONGTEXT with a CHECK.
_CHECKS: Final = (
    "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS"
    " WHERE CHECK_CLAUSE LIKE 'json%%' AND CONSTRAINT_SCHEMA"
)


def _column(kind: Any, digits: Any, is_old: Any, expression: Any) -> CatalogueColumn:
    return CatalogueColumn(
        type=str(kind).lower(),
        digits=None if digits is None else int(digits),
        is_old=bool(is_old),
        is_row_end=str(expression).upper() == "ROW END",
    )


def _may_name(statement: str, table: str) -> bool:
    """Return whether the statement may name the table; both in lower case."""
    is_plain = table.isascii() and "`" not in table and '"' not in table
    return table in statement or not is_plain


def _is_ambiguous(column: Column) -> bool:
    return column.type in OLD_TEMPORAL or _may_be_address(column) or _may_be_json(column)


def _may_be_address(column: Column) -> bool:
    """Return whether it may be a UUID, INET6 or INET4: in the log these are BINARY."""
    return column.type is _T.STRING and column.metadata[1] in {4, 16} and column.collation in {0, 63}


def _may_be_json(column: Column) -> bool:
    return column.type in {_T.BLOB, _T.BLOB_COMPRESSED} and column.metadata[0] == 4 and column.collation != 63


def _is_hash(column: Column) -> bool:
    return column.type is _T.LONGLONG and _HASH.fullmatch(column.name) is not None


def _may_be_of_period(column: Column) -> bool:
    """Return whether it may be the start or the end of a period of system time."""
    is_precise = column.type is _T.TIMESTAMP2 and column.metadata[0] == 6
    return (is_precise or column.type is _T.TIMESTAMP) and not column.nullable


def _has_own_period(table: TableMap) -> bool:
    """Return whether the table has the columns that WITH SYSTEM VERSIONING adds if it names none."""
    names = {column.name for column in table.columns if _may_be_of_period(column)}
    return names >= {_ROW_START, _ROW_END}


def _looks_like_sequence(table: TableMap) -> bool:
    return tuple(column.name for column in table.columns) == _SEQUENCE
