"""Catalogue data on tables: for wal2json, whose messages do not describe them completely."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import structlog

from listener.core.source import SourceError
from listener.postgres.client.connection import Connection, execute, fetch, fetch_value
from listener.postgres.codec.decoder import UndescribedTableError
from listener.postgres.hints import PARTITIONED, PARTITIONED_HINT
from listener.postgres.log.position import format_lsn
from listener.postgres.wal2json.definition_history import (
    ColumnDefinition,
    Observation,
    PossibleColumn,
    TableDefinition,
    TableHistory,
    TableName,
    UnknownDefinitionError,
    missing_columns,
)

__all__ = ["TableDefinitions", "has_altered"]

log = structlog.get_logger()

_GONE_HINT: Final = (
    "Nothing is missing if these tables were dropped. If one was a table of a route, renamed and renamed back while "
    "the listener was stopped, its rows have fired nothing: CDC_PLUGIN=pgoutput shows which table a row belongs to."
)

# The largest commit record, in bytes, of a transaction that has altered nothing: 24 of header, 2, 8 of time, 4, 8 of
# database, 16 if it was replicated from another server. If the transaction has altered something, the record has at
# least 20 bytes more: the cache entries that other sessions have to drop (xl_xact_invals in PostgreSQL's xact.h).
LARGEST_PLAIN_COMMIT: Final = 64
_PAGE, _PAGE_HEADER = 8192, 24  # a record that reaches the next page continues after that page's header

_NOT_OBSERVED: Final = TableHistory()
_MOST_ALTERING: Final = 10_000  # transactions that are kept in memory
_REFRESH_EVERY: Final = 0.25  # seconds between two queries of all tables, at least …
_SHARE_OF_TIME: Final = 20  # … of which the queries take up to a twentieth
_ALTERS_FOR: Final = 2.0  # seconds until every session sees a commit

# The end of the log, in the same statement as the definitions, which were all committed before it.
_END_OF_LOG: Final = """
pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0'
)::bigint
"""

# Final: older than the slot's catalog_xmin, so committed before everything that the slot has still to send. An age
# below zero is that of a transaction so old that xids have wrapped around since.
_TABLES: Final = f"""
WITH horizon AS MATERIALIZED (
    SELECT coalesce(max(age(catalog_xmin)), 2147483647) AS age FROM pg_replication_slots WHERE slot_name = %s
)
SELECT name.schema, name.relation, c.oid::bigint, c.relkind, c.relreplident,
    json_build_array(c.xmin::text::bigint, n.xmin::text::bigint),
    (age(c.xmin) < 0 OR age(c.xmin) > horizon.age) AND (age(n.xmin) < 0 OR age(n.xmin) > horizon.age),
    (SELECT json_agg(json_build_array(
         attnum, attname, atttypid::bigint, attlen = -1, attisdropped, a.xmin::text::bigint,
         age(a.xmin) < 0 OR age(a.xmin) > horizon.age) ORDER BY attnum)
     FROM pg_attribute a WHERE attrelid = c.oid AND attnum > 0),
    {_END_OF_LOG}
FROM horizon CROSS JOIN unnest(%s::text[], %s::text[]) AS name(schema, relation)
LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
    ON n.nspname = name.schema AND c.relname = name.relation
"""  # noqa: S608 - no outside text

_PARTITIONED: Final = """
SELECT n.nspname::text, c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'p' AND c.relpersistence <> 't'
"""

# All that can be selected: tables, partitioned tables, materialized views.
_NAMES: Final = """
SELECT n.nspname::text, c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
"""

_GONE: Final = """
SELECT asked.schema, asked.name
FROM unnest(%s::text[], %s::text[]) AS asked(schema, name)
WHERE to_regclass(format('%%I.%%I', asked.schema, asked.name)) IS NULL
ORDER BY 1, 2
"""

# A session that has altered a table keeps this lock until all sessions see it, perhaps after its commit was read.
_ALTERING: Final = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
"""

# The LSNs at which transactions committed, from a copy of the slot, without rows. Subtransactions are not among them. A
# subtransaction is younger than its transaction, so it committed with one of the older ones that altered something.
_COMMITS: Final = """
SELECT asked.xid::text::bigint,
    max(lsn) FILTER (WHERE committed.xid = asked.xid),
    max(lsn) FILTER (WHERE age(committed.xid) > age(asked.xid) AND size > %s)
FROM unnest(%s::xid[]) AS asked(xid) LEFT JOIN (
    SELECT xid, pg_wal_lsn_diff((data::json ->> 'lsn')::pg_lsn, '0/0')::bigint AS lsn,
        pg_wal_lsn_diff((data::json ->> 'nextlsn')::pg_lsn, (data::json ->> 'lsn')::pg_lsn) AS size
    FROM pg_logical_slot_peek_changes(
        %s, NULL, NULL, 'format-version', '2', 'include-lsn', 'true', 'filter-tables', '*.*')
    WHERE data LIKE '{"action":"C"%%'
) AS committed ON true
GROUP BY 1
"""


def has_altered(commit: int, end: int) -> bool:
    """Return whether a transaction may have altered a table, by the LSNs at which its commit record starts and ends."""
    crosses = commit // _PAGE != (end - 1) // _PAGE
    return end - commit > LARGEST_PLAIN_COMMIT + (_PAGE_HEADER if crosses else 0)


class TableDefinitions:
    """The known definitions of the tables, and since which LSN."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        slot: str,
        watches: Callable[[str, str], bool] = lambda *_: True,
        *,
        notes: str | None = None,
    ) -> None:
        """`connect` opens an ordinary session, `slot` is the listener's, `notes` are those of an earlier run."""
        self._connect = connect
        self._session: Connection | None = None
        self._slot = slot
        self._watches = watches
        self._histories = _read_notes(notes)
        # By xid: the LSN of the commit if it is known, and the last LSN at which it may be.
        self._commits: dict[int, tuple[int | None, int]] = {}
        self._sent: dict[TableName, frozenset[str]] = {}  # names of columns
        self._altering: deque[int] = deque(maxlen=_MOST_ALTERING)
        self._outdated_at = 0.0
        self._is_outdated = False  # something was altered, and `refresh_all` has not run since
        self._unknown_up_to = 0  # altering transactions before this LSN are dropped
        self._is_noted = False
        self._done_up_to = 0  # the LSN of the last `refresh_all`: rows before it are finished
        self._refreshed_all_at = 0.0
        self._took = 0.0

    @property
    def is_outdated(self) -> bool:
        """Whether tables may differ from what was last observed."""
        return self._is_outdated

    def is_known(self, table: TableName) -> bool:
        """Return whether the table was observed."""
        return table in self._histories

    def refresh(self, tables: Collection[TableName], *, lsn: int) -> bool:
        """Read the definitions of these tables; return whether any has changed.

        `lsn` is the LSN up to which the log was read. Raise SourceError if a selected table has become a partitioned
        one.
        """
        self._refuse_partitioned()
        if not tables:
            return False
        schemas, names = [schema for schema, _ in tables], [name for _, name in tables]
        is_new = False
        for schema, name, *found, end_of_log in fetch(self._open(), _TABLES, [self._slot, schemas, names]):
            seen = Observation(definition=_definition(found), since=end_of_log, until=lsn)
            history = self._histories.setdefault((schema, name), TableHistory())
            is_new |= history.add(seen)
            if len(history.observations) == 1:
                self._sent.pop((schema, name), None)
        self._is_noted &= not is_new
        return is_new

    def refresh_all(self, *, lsn: int | None = None) -> bool:
        """Read the definitions of all selected tables; without `lsn` the log was read up to its end."""
        began = monotonic()
        if lsn is None:
            lsn = int(fetch_value(self._open(), f"SELECT {_END_OF_LOG}"))
        is_altering = bool(fetch_value(self._open(), _ALTERING))
        there = {
            (schema, name) for schema, name in fetch(self._open(), _NAMES) if self._watches(schema, name)
        }
        for table in [name for name, history in self._histories.items() if history.is_over(self._done_up_to)]:
            del self._histories[table]
            self._sent.pop(table, None)
        is_new = self.refresh(there | self._histories.keys(), lsn=lsn)
        self._done_up_to = lsn
        self._refreshed_all_at = monotonic()
        self._took = self._refreshed_all_at - began
        # A session that has had the lock for longer has not committed yet.
        self._is_outdated = is_altering and self._refreshed_all_at - self._outdated_at < _ALTERS_FOR
        return is_new

    def report_gone(self, tables: Collection[TableName], *, lsn: int) -> None:
        """Log which of these tables without a route no longer exist in the database.

        Each may be a selected table under a temporary name, under which it was never observed.
        `lsn` is the LSN up to which the log was read.
        """
        schemas, names = [schema for schema, _ in tables], [name for _, name in tables]
        if gone := fetch(self._open(), _GONE, [schemas, names]):
            log.warning(
                "rows_of_tables_that_are_gone",
                tables=[f"{schema}.{name}" for schema, name in gone],
                up_to=format_lsn(lsn),
                hint=_GONE_HINT,
            )

    @property
    def may_refresh_all(self) -> bool:
        """Return whether the last `refresh_all` was long enough ago."""
        return monotonic() - self._refreshed_all_at >= max(_REFRESH_EVERY, _SHARE_OF_TIME * self._took)

    def is_certain(self, table: TableName, lsn: int) -> bool:
        """Return whether the latest observation is valid at `lsn` and since."""
        history = self._histories.get(table, _NOT_OBSERVED)
        return history.is_plain and history.is_certain(lsn)

    def kinds(self, table: TableName, lsn: int) -> frozenset[str]:
        """Return the possible kinds with that name, as pg_class.relkind; empty if unknown."""
        return self._histories.get(table, _NOT_OBSERVED).kinds(lsn, self)

    def missing(
        self, table: TableName, sent: Collection[str], lsn: int, *, is_whole: bool, may_be_full: bool
    ) -> dict[str, int]:
        """Return the columns, with their types, that a row lacks; see `history.missing_columns`.

        `may_be_full`: the sent part of the old row may be all of it. Raise UnknownDefinitionError.
        """
        ever_sent = self._sent.get(table, frozenset())
        missing = [
            column
            for columns in self._columns(table, lsn)
            for column in missing_columns(columns, sent, is_whole=is_whole, ever_sent=ever_sent)
        ]
        if missing and may_be_full and not any(column.is_certain for column in missing):
            identities = self._histories[table].identities(lsn, self)
            if identities == {"f"}:
                return {}
            if identities & {"f", ""} and is_whole:
                raise UnknownDefinitionError("its replica identity was changed")
        return {
            state.name: state.type_oid
            for column in missing
            for state in (*column.states, column.added)
            if state is not None
        }

    def note_sent(self, table: TableName, columns: Collection[str]) -> None:
        """Note that rows of the table have these columns, including unobserved ones."""
        self._sent[table] = self._sent.get(table, frozenset()).union(columns)

    def all_columns(self, table: TableName, lsn: int) -> dict[str, int]:
        """Return all known columns, with their types."""
        with suppress(UnknownDefinitionError):
            return {
                state.name: state.type_oid
                for columns in self._columns(table, lsn)
                for column in columns
                for state in column.states
            }
        return {}

    def notes(self) -> str | None:
        """Return the notes for the next start; None if they have not changed."""
        if self._is_noted:
            return None
        self._is_noted = True
        return _write_notes(self._histories)

    def close(self) -> None:
        """Close the session; safe to call twice."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def note_alteration(self, lsn: int) -> None:
        """Note that the transaction that commits at `lsn` may have altered a table."""
        if len(self._altering) == self._altering.maxlen:
            self._unknown_up_to = self._altering[0]
        self._altering.append(lsn)
        self._is_outdated = True
        self._outdated_at = monotonic()

    def is_before(self, xid: int, lsn: int) -> bool | None:
        """See `Order`."""
        if xid not in self._commits:
            self._find_commits(xid)
        exactly, latest = self._commits[xid]
        if exactly is None:
            return True if latest < lsn else None
        return None if exactly == lsn else exactly < lsn

    def is_quiet(self, since: int, lsn: int) -> bool:
        """See `Order`."""
        known = {exactly for exactly, _ in self._commits.values()}
        return since >= self._unknown_up_to and all(
            each in known for each in self._altering if since < each <= lsn
        )

    def _columns(self, table: TableName, lsn: int) -> list[list[PossibleColumn]]:
        return self._histories.get(table, _NOT_OBSERVED).columns(lsn, self)

    def _open(self) -> Connection:
        if self._session is None or self._session.closed:
            self._session = self._connect()
        return self._session

    def _refuse_partitioned(self) -> None:
        found = [name for name in fetch(self._open(), _PARTITIONED) if self._watches(*name)]
        if found:
            names = ", ".join(".".join(name) for name in found)
            raise UndescribedTableError(
                f"{names} {PARTITIONED}. Nothing was acknowledged.", hint=PARTITIONED_HINT
            )

    def _find_commits(self, xid: int) -> None:
        """Find the commit LSNs of this transaction, and of all others that created the known definitions."""
        asked = {xid, *(each for history in self._histories.values() for each in history.not_final)}
        asked -= self._commits.keys()
        connection = self._open()
        copy = f"{self._slot[:40]}_look_{connection.info.backend_pid}"
        try:
            execute(connection, "SELECT pg_copy_logical_replication_slot(%s, %s, true)", [self._slot, copy])
            try:
                found = fetch(
                    connection, _COMMITS, [LARGEST_PLAIN_COMMIT, [str(each) for each in asked], copy]
                )
            finally:
                execute(connection, "SELECT pg_drop_replication_slot(%s)", [copy])
        except SourceError as error:
            log.warning("order_unknown", reason=error.message)
            found = [(each, None, 2**63) for each in asked]
        self._commits |= {each: (exactly, latest or 0) for each, exactly, latest in found}
        for old in [*self._commits][:-_MOST_ALTERING]:
            del self._commits[old]


def _definition(found: Sequence[Any]) -> TableDefinition | None:
    """Return one table's definition from a row of the query, or from the notes."""
    oid, kind, identity, named_by, is_name_final, columns = found
    if oid is None:
        return None
    return TableDefinition(
        oid=oid,
        kind=kind,
        identity=identity,
        named_by=tuple(named_by),
        is_name_final=is_name_final,
        columns=tuple(map(_column, columns or ())),
    )


def _column(found: Sequence[Any]) -> ColumnDefinition:
    number, name, type_oid, may_be_unsent, is_dropped, changed_by, is_final = found
    return ColumnDefinition(
        number=number,
        name=name,
        type_oid=type_oid,
        may_be_unsent=may_be_unsent,
        is_dropped=is_dropped,
        changed_by=changed_by,
        is_final=is_final,
    )


def _write_notes(histories: Mapping[TableName, TableHistory]) -> str:
    tables = [[*table, *map(_as_list, history.observations)] for table, history in histories.items()]
    return json.dumps({"wal2json": tables}, separators=(",", ":"))


def _as_list(seen: Observation) -> list[Any]:
    """Return an observation for JSON. Final states are not stored: each start determines them again."""
    found = seen.definition
    if found is None:
        return [seen.since, seen.until, None, "", "", [], False, []]
    columns = [
        [each.number, each.name, each.type_oid, each.may_be_unsent, each.is_dropped, each.changed_by, False]
        for each in found.columns
    ]
    return [seen.since, seen.until, found.oid, found.kind, found.identity, found.named_by, False, columns]


def _read_notes(notes: str | None) -> dict[TableName, TableHistory]:
    """Parse the output of `_write_notes`; empty for notes of the other plugin."""
    tables: Iterable[list[Any]] = json.loads(notes).get("wal2json", ()) if notes else ()
    return {
        (schema, name): TableHistory(
            [
                Observation(definition=_definition(found), since=since, until=until)
                for since, until, *found in observations
            ]
        )
        for schema, name, *observations in tables
    }
