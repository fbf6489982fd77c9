"""Tables as described in the log, with data from the catalogue, and which of them the routes select."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from cdc_tasks.routing.router import Route
from listener.core.source import SourceError
from listener.mysql.charsets import Charsets
from listener.mysql.codec.column_layout import Layout, layout_of
from listener.mysql.codec.marks import MARKS_TABLE
from listener.mysql.codec.table import Table
from listener.mysql.codec.table_map import OLD_TEMPORAL, ColumnType, TableMap, parse_table_map
from listener.mysql.errors import setting
from listener.mysql.tables.catalogue import Definition, Definitions, needs_catalogue

__all__ = ["TableSelection", "Tables", "selected_tables"]


class Tables:
    """Creates a `Table` from each description in the log."""

    def __init__(
        self, definitions: Definitions | None, charsets: Charsets, routes: Sequence[Route], *, mariadb: bool
    ) -> None:
        """`definitions`: data found only in the catalogue; None if the log has everything."""
        self._definitions = definitions
        self._charsets = charsets
        self._selection = TableSelection(routes)
        self._mariadb = mariadb

    def describe(self, body: bytes) -> Table | None:
        """Return the table; None if no route selects it and it cannot be read.

        Raises SourceError if the rows of a selected table have no column names, or cannot be read.
        """
        try:
            table_map = parse_table_map(body, mariadb=self._mariadb)
        except ValueError as error:
            table_map = _named(body)
            if self._is_selected(table_map):
                raise _unreadable(table_map, error) from error
            return None
        is_selected = self._is_selected(table_map)
        if is_selected:
            _check_metadata(table_map, mariadb=self._mariadb)
        try:
            return self._describe(table_map, is_selected=is_selected)
        except (KeyError, ValueError) as error:
            if is_selected:
                raise _unreadable(table_map, error) from error
            return None

    def forget(self, statement: bytes) -> None:
        """Drop the catalogue data of the tables that a statement may have changed."""
        if self._definitions is not None:
            self._definitions.forget(statement)

    def _describe(self, table_map: TableMap, *, is_selected: bool) -> Table:
        """Return the table. Raise KeyError, ValueError if a column's layout is unknown."""
        # A TEXT of the marks may look like MariaDB's JSON; it is not rendered.
        if (
            self._definitions is None
            or table_map.name == MARKS_TABLE
            or not needs_catalogue(table_map, is_selected=is_selected)
        ):
            layouts = [layout_of(column, self._charsets) for column in table_map.columns]
            is_marks = table_map.name == MARKS_TABLE
            return Table(table_map, layouts, is_selected=is_selected, is_marks=is_marks)
        definition = self._definitions.of(table_map)
        return Table(
            table_map,
            list(self._completed_layouts(table_map, definition)),
            is_selected=is_selected and not definition.is_sequence(table_map),
            is_completed=True,
            hidden=definition.hidden(table_map),
            row_end=definition.row_end(table_map),
        )

    def _completed_layouts(self, table_map: TableMap, definition: Definition) -> Iterator[Layout]:
        for column in table_map.columns:
            known = definition.columns.get(column.name)
            if column.type in OLD_TEMPORAL and not (known and known.is_old):
                raise ValueError(
                    f"the log does not show how many digits column {column.name} had, and the table has changed since"
                )
            yield layout_of(column, self._charsets, known) if known else layout_of(column, self._charsets)

    def _is_selected(self, table: TableMap) -> bool:
        return table.name != MARKS_TABLE and self._selection.covers(table.schema, table.name)


def _check_metadata(table: TableMap, *, mariadb: bool) -> None:
    lacks_labels = any(
        column.labels is None and column.type in {ColumnType.ENUM, ColumnType.SET} for column in table.columns
    )
    if not table.has_names or lacks_labels:
        raise SourceError(
            f"rows of {table.schema}.{table.name} without the names of its columns:"
            " binlog_row_metadata is not FULL.",
            hint=f"{setting('binlog_row_metadata', 'FULL', mariadb=mariadb)}\nWhat was logged before cannot be read.",
            code="binlog_row_metadata",
        )


def _named(body: bytes) -> TableMap:
    """Return the schema and name, which can be read with any columns."""
    end = 1 + body[0]
    start = end + 2
    return TableMap(
        schema=body[1:end].decode(errors="backslashreplace"),
        name=body[start : start + body[end + 1]].decode(errors="backslashreplace"),
        columns=(),
    )


def _unreadable(table: TableMap, error: Exception) -> SourceError:
    return SourceError(
        f"rows of {table.schema}.{table.name} that cannot be read: {error}.",
        hint="Update cdc-tasks, and report this with the server's version.",
        code="undecodable",
    )


# --- Which tables the routes select ---------------------------------------------------------------------

_WILDCARDS: Final = frozenset("*?[")


class TableSelection:
    """All tables that some routes select."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._names = {(route.schema, route.table) for route in routes if not _is_glob(route)}
        self._globs = [route for route in routes if _is_glob(route)]

    def covers(self, schema: str, table: str) -> bool:
        """Return whether one of the routes selects the table."""
        return (schema, table) in self._names or any(route.matches(schema, table) for route in self._globs)


def selected_tables(route: Route, tables: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of the tables, by schema and name, that the route selects."""
    if _is_glob(route):
        return [name for name in tables if route.matches(*name)]
    name = route.schema, route.table
    return [name] if name in tables else []


def _is_glob(route: Route) -> bool:
    return not _WILDCARDS.isdisjoint(route.schema + route.table)
