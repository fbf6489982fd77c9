"""The existing tables, for a first file of routes."""

from __future__ import annotations

from contextlib import closing
from typing import Final

from listener.core.existing_table import ExistingTable
from listener.mysql.client.connection import connect, fetch, fetch_value

__all__ = ["read_existing_tables"]

_WHOLE: Final = frozenset({"FULL", "FULL_NODUP"})


def read_existing_tables(url: str, schema: str) -> list[ExistingTable]:
    """Return the tables of a database, by name; raises SourceError, SourceLostError."""
    with closing(connect(url)) as connection:
        is_whole = fetch_value(connection, "SELECT @@GLOBAL.binlog_row_image") in _WHOLE
        columns: dict[str, list[str]] = {}
        for table, column in fetch(connection, _COLUMNS, [schema]):
            columns.setdefault(str(table), []).append(str(column))
        keys: dict[str, list[str]] = {}
        for table, column in fetch(connection, _KEYS, [schema]):
            keys.setdefault(str(table), []).append(str(column))
    return [
        ExistingTable(
            schema=schema,
            name=name,
            key=tuple(keys.get(name, ())),
            columns=tuple(columns[name]),
            remark="" if is_whole else "binlog_row_image is not FULL: old values are missing.",
            obstacle="" if name in keys else "no primary key. List the columns that the task needs.",
        )
        for name in sorted(columns)
    ]


_COLUMNS: Final = (
    "SELECT c.TABLE_NAME, c.COLUMN_NAME FROM information_schema.COLUMNS c JOIN information_schema.TABLES t"
    " ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME"
    " WHERE c.TABLE_SCHEMA = %s AND t.TABLE_TYPE NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE')"
    " ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"
)
_KEYS: Final = (
    "SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS"
    " WHERE TABLE_SCHEMA = %s AND INDEX_NAME = 'PRIMARY' ORDER BY TABLE_NAME, SEQ_IN_INDEX"
)
