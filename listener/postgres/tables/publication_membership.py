"""Adds tables to the publication, and finds out whether earlier rows were missed.

One transaction locks out writers (SHARE ROW EXCLUSIVE), checks whether anything was ever written to the table, and adds
the table: an empty table's first row comes after it. The lock has another purpose: a transaction that is open while a
table is added is published as if the table had not been added (on servers from before the minor releases of 2025: all
of its rows; on later ones: those that it wrote before). With the lock there is no such transaction.

The application never waits long for the listener: if a lock is not free immediately, the listener gives up and retries.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from psycopg2.sql import SQL, Composed, Identifier, Literal

from cdc_tasks.errors import CDCError
from listener.core.source import SourceLostError
from listener.postgres.client.connection import Connection, execute, fetch
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.tables.catalogue import Table, TableName
from listener.postgres.tables.publication import add_tables, drop_tables, with_sql

__all__ = ["AddedTables", "add_to_publication", "find_unwritten", "replace_list", "run_together"]

_LOCK_TIMEOUT: Final = "200ms"  # writers queue up behind a lock that the listener waits for
_TRIES: Final = 3
_PAUSE: Final = 0.3
_TIME_LIMIT: Final = 5.0  # seconds for all attempts together, for any number of locked tables
_AT_ONCE: Final = 50  # tables in one transaction

Columns = frozenset[str] | None

# A table's file has its OID as name until the table is truncated or rewritten, and the table has -1 rows (before
# version 14: 0) until it is analysed. Only partitions that can have rows count.
_WRITTEN: Final = """
SELECT root.oid FROM unnest(%s::oid[]) AS root(oid)
WHERE EXISTS (
  SELECT FROM (SELECT root.oid UNION SELECT relid FROM pg_partition_tree(root.oid)) AS member(oid)
  JOIN pg_class c ON c.oid = member.oid
  WHERE c.relkind = 'r' AND (pg_relation_size(c.oid) > 0 OR c.relfilenode <> c.oid OR c.reltuples > %s))
"""


def find_unwritten(connection: Connection, tables: Sequence[Table]) -> frozenset[int]:
    """Return the OIDs of tables that were never written to; none if another session locks one of them."""
    if not tables:
        return frozenset()
    try:
        with _transaction(connection):
            return _unwritten(connection, tables)
    except SourceLostError:
        if connection.closed:
            raise
        return frozenset()


def _unwritten(connection: Connection, tables: Sequence[Table]) -> frozenset[int]:
    oids = [table.oid for table in tables]
    empty = -1 if connection.info.server_version >= 14_00_00 else 0
    written = {oid for (oid,) in fetch(connection, _WRITTEN, [oids, empty])}
    return frozenset(oids) - written


class AddedTables(NamedTuple):
    """The result of adding tables to the publication."""

    proven: frozenset[int]  # the OIDs of tables not written to before
    denied: tuple[PermissionDeniedError, ...]  # for tables that our role may not publish, with the SQL
    busy: tuple[SourceLostError, ...]  # for tables locked by another session
    unlocked: frozenset[int]  # the OIDs of tables added while another session was writing to them


def add_to_publication(
    connection: Connection, publication: str, columns: Mapping[TableName, Columns], tables: Sequence[Table]
) -> AddedTables:
    """Add the tables with these `columns`. Raise SourceLostError if the session is lost."""
    proven: set[int] = set()
    unlocked: set[int] = set()
    denied: list[PermissionDeniedError] = []
    busy: list[SourceLostError] = []
    until = time.monotonic() + _TIME_LIMIT
    for at in range(0, len(tables), _AT_ONCE):
        some = tables[at : at + _AT_ONCE]
        try:
            proven |= _add(connection, publication, columns, some, lock=True)
        except (PermissionDeniedError, SourceLostError):
            if connection.closed:
                raise
            for table in some:  # one of them is locked, or may not be published
                with _collecting(connection, denied, busy):
                    found = _add_soon(connection, publication, columns, table, until)
                    proven |= found or frozenset()
                    unlocked |= {table.oid} if found is None else frozenset()
    return AddedTables(frozenset(proven), tuple(denied), tuple(busy), frozenset(unlocked))


@contextmanager
def _collecting(
    connection: Connection, denied: list[PermissionDeniedError], busy: list[SourceLostError]
) -> Iterator[None]:
    try:
        yield
    except PermissionDeniedError as error:
        denied.append(error)
    except SourceLostError as error:
        if connection.closed:
            raise
        busy.append(error)


def replace_list(connection: Connection, publication: str, tables: Mapping[TableName, Columns]) -> None:
    """Publish other columns of already published tables, without a moment in which they are unpublished."""
    statements = [drop_tables(publication, tables), add_tables(publication, tables)]
    run_together(connection, statements)


def run_together(connection: Connection, statements: Sequence[Composed]) -> None:
    """Run the statements in one transaction; the hint of an error has the SQL, or the owner of the lock."""
    try:
        with _transaction(connection):
            for statement in statements:
                execute(connection, statement)
    except (PermissionDeniedError, SourceLostError) as error:
        if connection.closed:
            raise
        raise with_sql(error, statements, connection) from error


def _add_soon(
    connection: Connection,
    publication: str,
    columns: Mapping[TableName, Columns],
    table: Table,
    until: float,
) -> frozenset[int] | None:
    """Try a few times with the lock, then without it: a long transaction must not keep a table out.

    Return what `_add` returns; None without the lock.
    """
    for _ in range(_TRIES - 1):
        if time.monotonic() < until:
            with suppress(SourceLostError):
                return _add(connection, publication, columns, [table], lock=True)
            time.sleep(_PAUSE)
    _add(connection, publication, columns, [table], lock=False)
    return None


def _add(
    connection: Connection,
    publication: str,
    columns: Mapping[TableName, Columns],
    some: Sequence[Table],
    *,
    lock: bool,
) -> frozenset[int]:
    statement = add_tables(publication, {table.name: columns[table.name] for table in some})
    try:
        with _transaction(connection):
            if lock:
                execute(connection, _lock(some))
            proven = _unwritten(connection, some) if lock else frozenset[int]()
            execute(connection, statement)
    except (PermissionDeniedError, SourceLostError) as error:
        if connection.closed:
            raise
        raise with_sql(error, [statement], connection) from error
    return proven


def _lock(tables: Collection[Table]) -> Composed:
    """Return the statement that locks the tables, a partitioned table with its partitions."""
    locked = (
        SQL("{}" if table.is_partitioned else "ONLY {}").format(Identifier(*table.name)) for table in tables
    )
    return SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(SQL(", ").join(locked))


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    execute(connection, SQL("BEGIN; SET LOCAL lock_timeout = {}").format(Literal(_LOCK_TIMEOUT)))
    try:
        yield
    except BaseException:
        with suppress(CDCError):
            execute(connection, "ROLLBACK")
        raise
    execute(connection, "COMMIT")
