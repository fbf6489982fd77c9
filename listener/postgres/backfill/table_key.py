"""The table that a backfill reads, the key for the reading order, and whether the role may read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from psycopg2.sql import SQL, Composed, Identifier

from listener.core.backfill import BackfillRefusedError, TablePlan, check_where
from listener.core.findings import Finding, State
from listener.core.source import SourceError
from listener.postgres.client.connection import Connection, fetch, fetch_value
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.hints import quoted, quoted_table
from listener.postgres.tables.catalogue import TableName

__all__ = ["ReadableTable", "count_rows", "find_in_reads", "find_table", "plan_table"]


class ReadableTable(NamedTuple):
    """A table that a backfill can read."""

    oid: int
    name: TableName
    is_partitioned: bool
    key: tuple[str, ...]  # columns

    @property
    def source(self) -> Composed:
        """The table for FROM, without the tables that inherit from it: their rows have other table names."""
        only = SQL("") if self.is_partitioned else SQL("ONLY ")
        return only + Identifier(*self.name)

    @property
    def keys(self) -> Composed:
        """The columns of the key, for ORDER BY."""
        return SQL(", ").join(map(Identifier, self.key))


def find_table(connection: Connection, name: TableName, publication: str | None = None) -> ReadableTable:
    """Return the table, with the key for the reading order. Raise BackfillRefusedError, SourceError, SourceLostError.

    The key is that of the replica identity, if there is one: the stream has it for each UPDATE and DELETE. With
    `publication`, a partition is refused if its changes come under the name of its root.
    """
    rows = fetch(connection, _TABLE, list(name))
    if not rows or rows[0][1] not in "rp":
        raise BackfillRefusedError(
            f"There is no table {'.'.join(name)}.",
            hint="Name a table of a route, with its schema: python -m listener routes",
            code="backfill_no_table",
        )
    oid, kind, usable, may_read, role = rows[0]
    _check_right(name, role, usable=usable, may_read=may_read)
    if publication is not None and (root := fetch_value(connection, _ROOT, [oid, publication])):
        raise BackfillRefusedError(
            f"{'.'.join(name)} is a partition of {root}, and its changes come under that name.",
            hint=f"Name {root} instead.",
            code="backfill_partition",
        )
    keys = fetch(connection, _KEYS, [oid])
    if not keys:
        raise BackfillRefusedError(
            f"The table {'.'.join(name)} has no primary key, and no unique key with NOT NULL columns: there is no "
            "order for reading it in chunks.",
            hint=f"ALTER TABLE {quoted_table(name)} ADD PRIMARY KEY (…);\n"
            f"Or: ALTER TABLE {quoted_table(name)} ADD UNIQUE (…); with NOT NULL columns",
            code="backfill_no_key",
        )
    return ReadableTable(oid, name, kind == "p", tuple(keys[0][0]))


def _check_right(name: TableName, role: str, *, usable: bool, may_read: bool) -> None:
    if usable and may_read:
        return
    raise BackfillRefusedError(
        f"The role {role} may not read the table {'.'.join(name)}.",
        hint=_grant(name, role, usable=usable),
        code="backfill_no_right",
    )


def _grant(name: TableName, role: str, *, usable: bool) -> str:
    usage = "" if usable else f"GRANT USAGE ON SCHEMA {quoted(name[0])} TO {quoted(role)};\n"
    return f"{usage}GRANT SELECT ON {quoted_table(name)} TO {quoted(role)};"


def find_in_reads(connection: Connection, tables: Sequence[TableName]) -> Iterator[Finding]:
    """Yield a problem for each table of a route with READ that the role may not read."""
    for name in tables:
        for _oid, _kind, usable, may_read, role in fetch(connection, _TABLE, list(name)):
            if not (usable and may_read):
                yield Finding(
                    what=f"table {'.'.join(name)}",
                    state=State.WARNING,
                    code="backfill_no_right",
                    found=f"a route takes EventType.READ, but the role {role} may not read the table",
                    hint=_grant(name, role, usable=usable),
                )


def plan_table(
    connection: Connection, name: TableName, where: str | None, limit: int, publication: str | None = None
) -> TablePlan:
    """Return the plan for reading the table. Raise BackfillRefusedError, SourceError, SourceLostError."""
    check_where(where)
    table = find_table(connection, name, publication)
    rows = SQL("SELECT 1 FROM {} WHERE ").format(table.source) + _condition(where)
    first = rows + SQL(" ORDER BY {} LIMIT {}").format(table.keys, SQL(str(limit)))
    try:
        plan: Any = fetch_value(connection, (SQL("EXPLAIN (FORMAT JSON) ") + rows).as_string(connection))
        lines = fetch(connection, SQL("EXPLAIN (COSTS OFF) ") + first)
    except PermissionDeniedError:
        raise
    except SourceError as error:
        if where is None:
            raise
        raise BackfillRefusedError(
            f"PostgreSQL does not accept the condition {where!r}: {error.message}",
            hint="Write a condition as after WHERE, with the table's columns. Your own functions and types need "
            "their schema, e.g. public.my_function(id).",
            code="backfill_where",
        ) from error
    plan = json.loads(plan) if isinstance(plan, str) else plan
    columns = fetch(connection, _COLUMNS, [table.oid])
    return TablePlan(
        schema=name[0],
        table=name[1],
        key=table.key,
        estimate=int(plan[0]["Plan"]["Plan Rows"]),
        columns=tuple(column for (column,) in columns),
        query_plan=tuple(line for (line,) in lines),
    )


def count_rows(connection: Connection, name: TableName, where: str | None) -> int:
    """Return how many rows a backfill would find now: the server reads all of them."""
    table = find_table(connection, name)
    count = SQL("SELECT count(*) FROM {} WHERE ").format(table.source) + _condition(where)
    return int(fetch(connection, count)[0][0])


def _condition(where: str | None) -> SQL:
    text = "true" if where is None else f"({where}\n)"
    return SQL(text.replace("{", "{{").replace("}", "}}"))


_TABLE: Final = """
SELECT c.oid::bigint, c.relkind::text, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
  current_user::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

_ROOT: Final = """
SELECT format('%%s.%%s', n.nspname, c.relname)
FROM pg_partition_ancestors(%s) WITH ORDINALITY AS a(relid, nth)
JOIN pg_class c ON c.oid = a.relid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_publication_rel r ON r.prrelid = c.oid JOIN pg_publication p ON p.oid = r.prpubid
WHERE a.nth > 1 AND p.pubname = %s AND p.pubviaroot ORDER BY a.nth DESC LIMIT 1
"""

# The replica identity's index first, then the primary key, then the one with the fewest columns.
_KEYS: Final = """
SELECT ARRAY(SELECT a.attname::text
             FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(attnum, nth)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.nth)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE i.indrelid = %s AND i.indisunique AND i.indimmediate AND (i.indisvalid OR c.relkind = 'p')
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS k(attnum)
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE NOT a.attnotnull)
ORDER BY i.indisreplident AND c.relreplident = 'i' DESC, i.indisprimary DESC, i.indnkeyatts, i.indexrelid
LIMIT 1
"""

_COLUMNS: Final = """
SELECT attname::text FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
