"""Checks that the log has the values that the routes need: with binlog_row_image=MINIMAL or NOBLOB it lacks some."""

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
    """Yield a warning for each route that needs columns which the log lacks with this row image.

    These are columns whose old values it compares, and those of its key.
    """
    if image not in _LACKING:
        return
    needing = [each for each in routes if _compared(each) or _of_key(each)]
    if not needing:
        return
    lacking = _read_lacking(connection, image)
    hint = setting("binlog_row_image", "FULL", mariadb=mariadb)
    for route in needing:
        for name in selected_tables(route, lacking):
            table = ".".join(name)
            if columns := sorted(_compared(route) & lacking[name]):
                yield _warning(route, _not_compared(route, table, columns, image), hint)
            if columns := sorted(_of_key(route) & lacking[name]):
                yield _warning(route, _without_key(route, table, columns, image), hint)


def _compared(route: Route) -> frozenset[str]:
    return frozenset(getattr(route.when, "columns", ()) if EventType.UPDATE in route.events else ())


def _of_key(route: Route) -> frozenset[str]:
    return frozenset(getattr(route.key, "columns", ()) if route.events & _LACKING_AT.keys() else ())


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


_LACKING_AT: Final = {
    EventType.UPDATE: "an UPDATE that does not set it",
    EventType.DELETE: "a DELETE",
}


def _not_compared(route: Route, table: str, columns: Sequence[str], image: str) -> str:
    listed = ", ".join(columns)
    return (
        f"{table}: the old value of {listed} is not in the log (binlog_row_image={image}): "
        f"{route.when!r} fires at each UPDATE that sets {listed}, even to the same value"
    )


def _without_key(route: Route, table: str, columns: Sequence[str], image: str) -> str:
    at = " and ".join(text for event, text in _LACKING_AT.items() if event in route.events)
    return (
        f"{table}: {', '.join(columns)} of key= is not in the log at {at} (binlog_row_image={image}): "
        "such a change is parked"
    )


def _warning(route: Route, found: str, hint: str) -> Finding:
    return Finding(
        what=f"route to {route.task}", state=State.WARNING, code="old_values", found=found, hint=hint
    )
