"""The existing tables, for a first file of routes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, Final

from listener.core.existing_table import ExistingTable
from listener.postgres.client.connection import connect, fetch
from listener.postgres.hints import quoted_table
from listener.postgres.tables.catalogue import Identity

__all__ = ["read_existing_tables"]


def read_existing_tables(url: str) -> list[ExistingTable]:
    """Return all tables except partitions and those of extensions, by name. Raise SourceError, SourceLostError."""
    with closing(connect(url)) as connection:
        return list(_tables(fetch(connection, _TABLES)))


def _tables(rows: Iterable[tuple[Any, ...]]) -> Iterator[ExistingTable]:
    for schema, name, is_logged, identity, key, columns in rows:
        yield ExistingTable(
            schema=schema,
            name=name,
            key=tuple(key),
            columns=tuple(columns),
            remark=_REMARKS.get(Identity(identity), ""),
            obstacle=_obstacle((schema, name), Identity(identity), is_logged=is_logged, has_key=bool(key)),
        )


_REMARKS: Final = {
    Identity.FULL: "REPLICA IDENTITY FULL: an UPDATE and a DELETE have the whole old row.",
    Identity.INDEX: "The replica identity is a unique index, not the primary key.",
}


def _obstacle(table: tuple[str, str], identity: Identity, *, is_logged: bool, has_key: bool) -> str:
    name = quoted_table(table)
    if not is_logged:
        return f"unlogged, so its changes are in no log. ALTER TABLE {name} SET LOGGED;"
    if has_key and identity is Identity.NOTHING:
        return f"REPLICA IDENTITY NOTHING: UPDATE would fail. ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    if has_key:
        return ""
    if identity is Identity.FULL:
        return "no primary key, but REPLICA IDENTITY FULL. List the columns that the task needs."
    return (
        "no primary key: the application's own UPDATE and DELETE would fail. Add one, or: "
        f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
    )


# The key is that of the replica identity if this is an index, and otherwise the primary key.
_TABLES: Final = """
SELECT n.nspname, c.relname, c.relpersistence = 'p', c.relreplident,
  ARRAY(SELECT a.attname::text
        FROM pg_index i CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1])
          WITH ORDINALITY AS part(number, nth)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = part.number
        WHERE i.indrelid = c.oid AND (i.indisvalid OR c.relkind = 'p') AND i.indimmediate
          AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
        ORDER BY part.nth),
  ARRAY(SELECT attname::text FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname = 'public' DESC, 1, 2
"""
