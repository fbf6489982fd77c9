"""PostgreSQL's catalogue data on the tables that the routes select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from listener.postgres.client.connection import Connection, fetch

__all__ = [
    "ColumnList",
    "Identity",
    "ReplicaIdentity",
    "Table",
    "TableName",
    "is_system",
    "read_names",
    "read_tables",
]

TableName = tuple[str, str]  # schema, table


class Identity(StrEnum):
    """Which columns of the old row an UPDATE or DELETE logs: `pg_class.relreplident`."""

    DEFAULT = "d"  # the primary key
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaIdentity:
    """The replica identity of one table, or of one partition: a partition does not inherit its parent's."""

    table: TableName
    identity: Identity
    key: tuple[str, ...]  # the columns of the identity's index; empty if it has none

    @property
    def identifies_rows(self) -> bool:
        """Whether the application's UPDATE and DELETE still work when they are published."""
        return self.identity is Identity.FULL or bool(self.key)


@dataclass(frozen=True, slots=True)
class ColumnList:
    """A publication's list of a table's columns."""

    publication: str
    columns: frozenset[str]
    events: frozenset[str]  # those of UPDATE and DELETE that it publishes

    def refuses(self, identity: ReplicaIdentity) -> bool:
        """Return whether the server refuses UPDATE or DELETE of a table with this replica identity."""
        covered = identity.identity is not Identity.FULL and self.columns.issuperset(identity.key)
        return bool(self.events) and not covered


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is now, or a view or the like."""

    oid: int
    name: TableName
    kind: str  # pg_class.relkind: r table, p partitioned table, v view, m materialized view, f foreign table
    is_logged: bool
    columns: tuple[str, ...]
    stored_generated: frozenset[str]
    virtual_generated: frozenset[str]
    ancestors: tuple[TableName, ...]  # its parents, the nearest first
    own_identity: ReplicaIdentity
    partitions: tuple[ReplicaIdentity, ...]  # those that hold rows
    silent: tuple[TableName, ...]  # partitions without logged changes: foreign or unlogged
    listed_in: tuple[ColumnList, ...] = ()

    @property
    def is_publishable(self) -> bool:
        return self.kind in "rp" and self.is_logged

    @property
    def is_partitioned(self) -> bool:
        return self.kind == "p"

    @property
    def identities(self) -> tuple[ReplicaIdentity, ...]:
        """The replica identities that apply when a row changes."""
        return self.partitions if self.is_partitioned else (self.own_identity,)

    @property
    def key(self) -> frozenset[str]:
        """All columns that identify a row, in any partition."""
        return frozenset(column for each in (self.own_identity, *self.partitions) for column in each.key)


def is_system(schema: str) -> bool:
    """Return whether it is a server schema: no route selects its tables."""
    return schema == "information_schema" or schema.startswith("pg_")


def read_names(connection: Connection) -> dict[int, TableName]:
    """Return all tables, views and the like by their OIDs."""
    return {oid: (schema, name) for oid, schema, name in fetch(connection, _NAMES)}


def read_tables(connection: Connection, oids: Sequence[int]) -> tuple[Table, ...]:
    """Return the tables that still exist, in the order of their names."""
    own: dict[int, ReplicaIdentity] = {}
    partitions: dict[int, list[ReplicaIdentity]] = {}
    silent: dict[int, list[TableName]] = {}
    for root, oid, schema, name, kind, has_log, identity, key in fetch(connection, _IDENTITIES, [list(oids)]):
        found = ReplicaIdentity(table=(schema, name), identity=Identity(identity), key=tuple(key))
        if oid == root:
            own[root] = found
        elif has_log:
            partitions.setdefault(root, []).append(found)
        elif kind != "p":
            silent.setdefault(root, []).append(found.table)
    return tuple(
        Table(
            oid=oid,
            name=own[oid].table,
            kind=kind,
            is_logged=is_logged,
            columns=tuple(columns),
            stored_generated=frozenset(stored),
            virtual_generated=frozenset(virtual),
            ancestors=tuple((schema, name) for schema, name in ancestors),
            listed_in=tuple(
                ColumnList(publication, frozenset(listed), frozenset(events))
                for publication, listed, events in lists or ()
            ),
            own_identity=own[oid],
            partitions=tuple(partitions.get(oid, ())),
            silent=tuple(silent.get(oid, ())),
        )
        for oid, kind, is_logged, columns, stored, virtual, ancestors, lists in fetch(
            connection, _DETAILS, [list(oids)]
        )
        if oid in own  # otherwise created or dropped between the two queries
    )


_NAMES: Final = """
SELECT c.oid, n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
"""

# The index that identifies a row, as RelationGetIndexList in PostgreSQL's relcache.c finds it: a deferrable primary key
# does not count.
_IDENTITIES: Final = """
SELECT root.oid, c.oid, n.nspname, c.relname, c.relkind, c.relkind = 'r' AND c.relpersistence = 'p',
  c.relreplident, ARRAY(
    SELECT a.attname::text
    FROM pg_index i JOIN pg_attribute a
      ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
    WHERE i.indrelid = c.oid AND (i.indisvalid OR c.relkind = 'p') AND i.indimmediate
      AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)
    ORDER BY a.attnum)
FROM unnest(%s::oid[]) AS root(oid)
CROSS JOIN LATERAL (SELECT root.oid UNION SELECT relid FROM pg_partition_tree(root.oid)) AS member(oid)
JOIN pg_class c ON c.oid = member.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname, c.relname
"""

_DETAILS: Final = """
SELECT c.oid, c.relkind, c.relpersistence = 'p',
  ARRAY(SELECT attname::text FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
  ARRAY(SELECT attname::text FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = 's'),
  ARRAY(SELECT attname::text FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = 'v'),
  ARRAY(SELECT ARRAY[an.nspname::text, ac.relname::text]
        FROM pg_partition_ancestors(c.oid) WITH ORDINALITY AS a(oid, nth)
        JOIN pg_class ac ON ac.oid = a.oid JOIN pg_namespace an ON an.oid = ac.relnamespace
        WHERE ac.oid <> c.oid ORDER BY a.nth),
  (SELECT json_agg(json_build_array(p.pubname, (
            SELECT json_agg(a.attname) FROM pg_attribute a
            WHERE a.attrelid = c.oid AND to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum)),
          array_remove(ARRAY[CASE WHEN p.pubupdate THEN 'UPDATE' END, CASE WHEN p.pubdelete THEN 'DELETE' END], NULL)
          ) ORDER BY p.pubname)
   FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
   WHERE r.prrelid = c.oid AND jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%s::oid[])
ORDER BY n.nspname, c.relname
"""
