"""Tables as the catalogue describes them: for wal2json, whose messages do not say it all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from listener.postgres.connection import Connection, fetch

__all__ = ["ColumnDefinition", "TableDefinition", "TableDefinitions", "TableName"]

TableName = tuple[str, str]  # schema, table


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """One column; `toastable` if its value may lie outside of the row, and then be left out of the log."""

    name: str
    type_oid: int
    toastable: bool


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A table as of some moment; one that was dropped by then has no columns."""

    columns: tuple[ColumnDefinition, ...]
    ancestors: tuple[TableName, ...]  # the table itself, what it is a partition of, …, the root
    as_of: int  # microseconds since 2000-01-01 UTC, by the server's clock


# `now()` is before the query's snapshot: a row written under a newer definition than this one commits later.
_TABLE: Final = """
WITH relation AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
)
SELECT
    (extract(epoch FROM pg_catalog.now()) * 1000000)::bigint - 946684800000000,
    (SELECT json_agg(json_build_array(attname, atttypid::bigint, attlen = -1 AND attstorage <> 'p')
                     ORDER BY attnum)
     FROM pg_catalog.pg_attribute JOIN relation ON attrelid = relation.oid
     WHERE attnum > 0 AND NOT attisdropped),
    (SELECT json_agg(json_build_array(n.nspname, c.relname) ORDER BY place)
     FROM relation, pg_catalog.pg_partition_ancestors(relation.oid) WITH ORDINALITY AS ancestor (relid, place)
     JOIN pg_catalog.pg_class c ON c.oid = ancestor.relid
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
"""

_PARTITIONED: Final = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'p'
"""


class TableDefinitions:
    """Asks the catalogue about tables, and remembers each answer for as long as it must be right."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """`connect` opens an ordinary session; it is called when there is something to ask."""
        self._connect = connect
        self._session: Connection | None = None
        self._known: dict[TableName, TableDefinition] = {}

    def known(self, table: TableName) -> TableDefinition | None:
        """Return the last answer about a table, however old."""
        return self._known.get(table)

    def of(self, table: TableName, as_of: int) -> TableDefinition:
        """Return a definition not older than `as_of` (microseconds since 2000-01-01 UTC).

        Raises SourceError, SourceLost.
        """
        known = self._known.get(table)
        if known is None or known.as_of < as_of:
            known = self._known[table] = self._ask(table)
        return known

    def partitioned(self) -> frozenset[TableName]:
        """Return the tables that have partitions; raises SourceError, SourceLost."""
        return frozenset((schema, name) for schema, name in fetch(self._open(), _PARTITIONED))

    def close(self) -> None:
        """Close the session; safe to call twice."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> Connection:
        if self._session is None or self._session.closed:
            self._session = self._connect()
        return self._session

    def _ask(self, table: TableName) -> TableDefinition:
        ((as_of, columns, ancestors),) = fetch(self._open(), _TABLE, table)
        return TableDefinition(
            columns=tuple(ColumnDefinition(*column) for column in columns or ()),
            ancestors=tuple((schema, name) for schema, name in ancestors or [table]),
            as_of=as_of,
        )
