"""Whether the log has the old values that the routes compare: with binlog_row_image=MINIMAL or NOBLOB it lacks some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from cdc_tasks.changes import EventType
from cdc_tasks.routing.router import Route
from listener.core.findings import Finding, State
from listener.mysql.client.connection import Connection, fetch
from listener.mysql.errors import setting
from listener.mysql.tables.table_description import selected_tables

__all__ = ["find_in_old_values"]

_Name = tuple[str, str]  # schema and table


def find_in_old_values(
    connection: Connection[Any], routes: Sequence[Route], image: str, *, mariadb: bool = False
) -> Iterator[Finding]:
    """Yield a warning for each route that compares columns whose old values the log lacks with this row image."""
    if image not in _LACKING:
        return
    comparing = [each for each in routes if _compared(each) and EventType.UPDATE in each.events]
    if not comparing:
        return
    lacking = _read_lacking(connection, image)
    for route in comparing:
        for name in selected_tables(route, lacking):
            if columns := sorted(_compared(route) & lacking[name]):
                yield _warning(route, name, columns, image, mariadb=mariadb)


def _compared(route: Route) -> frozenset[str]:
    return frozenset(getattr(route.when, "columns", ()))


def _read_lacking(connection: Connection[Any], image: str) -> dict[_Name, set[str]]:
    """Return the columns whose old values are not logged, by table."""
    found: dict[_Name, set[str]] = {}
    for schema, table, column in fetch(connection, _LACKING[image]):
        found.setdefault((str(schema), str(table)), set()).add(str(column))
    return found


_LACKING: Final = {
    # The key alone is logged of an old row, but all of it if there is no key.
    "MINIMAL": "SELECT c.TABLE_SCHEMA, c.TABLE_NAME, c.COLUMN_NAME FROM information_schema.COLUMNS c"
    " WHERE c.TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys')"
    " AND c.COLUMN_KEY <> 'PRI' AND EXISTS (SELECT 1 FROM information_schema.COLUMNS k"
    " WHERE k.TABLE_SCHEMA = c.TABLE_SCHEMA AND k.TABLE_NAME = c.TABLE_NAME AND k.COLUMN_KEY = 'PRI')",
    "NOBLOB": "SELECT c.TABLE_SCHEMA, c.TABLE_NAME, c.COLUMN_NAME FROM information_schema.COLUMNS c"
    " WHERE c.TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys')"
    " AND c.COLUMN_KEY <> 'PRI' AND (c.DATA_TYPE LIKE '%blob' OR c.DATA_TYPE LIKE '%text'"
    " OR c.DATA_TYPE IN ('json', 'geometry'))",
}


def _warning(route: Route, name: _Name, columns: Sequence[str], image: str, *, mariadb: bool) -> Finding:
    listed = ", ".join(columns)
    return Finding(
        what=f"route to {route.task}",
        state=State.WARNING,
        code="old_values",
        found=f"{'.'.join(name)}: the old value of {listed} is not in the log (binlog_row_image={image}): "
        f"{route.when!r} fires at each UPDATE that sets {listed}, also to the value that it had",
        hint=setting("binlog_row_image", "FULL", mariadb=mariadb),
    )
