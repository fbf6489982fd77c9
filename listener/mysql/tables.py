"""Tables as the log describes them, made ready to read, with what only the catalogue knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from listener.monitor import SourceError
from listener.mysql.catalogue import needs_catalogue, special_types
from listener.mysql.charsets import Charsets
from listener.mysql.errors import setting
from listener.mysql.layout import layout_of
from listener.mysql.session import Session
from listener.mysql.table import Table
from listener.mysql.table_map import ColumnType, TableMap, parse_table_map
from listener.mysql.watched import Watched
from listener.router import Route

__all__ = ["Tables"]


class Tables:
    """Makes a `Table` of each description in the log."""

    def __init__(
        self,
        session: Session,
        charsets: Charsets,
        routes: Sequence[Route],
        *,
        mariadb: bool,
    ) -> None:
        self._session = session
        self._charsets = charsets
        self._watched = Watched(routes)
        self._mariadb = mariadb

    def describe(self, body: bytes) -> Table | None:
        """Return the table; None for one that nobody watches and that cannot be read.

        Raises SourceError where rows of a watched table would have no names, or cannot be read.
        """
        try:
            table_map = parse_table_map(body, mariadb=self._mariadb)
        except ValueError as error:
            table_map = _named(body)
            if self._is_watched(table_map):
                raise _unreadable(table_map, error) from error
            return None
        watched = self._is_watched(table_map)
        if watched:
            _check_metadata(table_map, mariadb=self._mariadb)
        try:
            special = self._special(table_map) if watched else {}
            layouts = [layout_of(column, self._charsets, special) for column in table_map.columns]
        except (KeyError, ValueError) as error:
            if watched:
                raise _unreadable(table_map, error) from error
            return None
        return Table(table_map, layouts, is_watched=watched)

    def _is_watched(self, table: TableMap) -> bool:
        return self._watched.covers(table.schema, table.name)

    def _special(self, table: TableMap) -> Mapping[str, str]:
        if not self._mariadb or not needs_catalogue(table):
            return {}
        return special_types(self._session, table)


def _check_metadata(table: TableMap, *, mariadb: bool) -> None:
    lacks_labels = any(
        column.labels is None and column.type in {ColumnType.ENUM, ColumnType.SET} for column in table.columns
    )
    if not table.has_names or lacks_labels:
        raise SourceError(
            f"rows of {table.schema}.{table.name} without the names of its columns:"
            " binlog_row_metadata is not FULL.",
            hint=f"{setting('binlog_row_metadata', 'FULL', mariadb=mariadb)}\nWhat was logged before cannot be read.",
        )


def _named(body: bytes) -> TableMap:
    """Return as much of a description as can be read whatever its columns are."""
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
    )
