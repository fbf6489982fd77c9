"""Decodes wal2json's messages, format-version 2: JSON to changes, nothing else.

The decoder reverses the JSON encoding of values, so a row is server text again, as with pgoutput. One thing
cannot be reversed: wal2json before 2.6 writes NaN and Infinity as null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple, Unpack

from cdc_tasks.routing.enqueued import EnqueuedTask
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.codec.decoder import (
    MALFORMED,
    Begin,
    Commit,
    Decoder,
    DecoderOptions,
    Hidden,
    UndescribedTableError,
    Watermark,
)
from listener.postgres.codec.table import Column, Table
from listener.postgres.codec.tuple_data import UNCHANGED
from listener.postgres.codec.values import ValueType
from listener.postgres.log.position import format_lsn, parse_lsn
from listener.postgres.wal2json.definition_history import TableName, UnknownDefinitionError
from listener.postgres.wal2json.definitions import TableDefinitions, has_altered

__all__ = ["NUMBERS_AS_STRINGS", "OPTIONS", "Wal2JsonDecoder"]

# Without types, because a type's name with a quote in it makes the JSON invalid. Without a filter on tables, because
# ordinals must not change when routes change.
OPTIONS: Final = {
    "format-version": "2",
    "include-lsn": "true",
    "include-xids": "true",
    "include-timestamp": "true",
    "include-types": "false",
    "include-type-oids": "true",
}
# For NaN and Infinity, since wal2json 2.6. An older one refuses it with SQLSTATE 22023.
NUMBERS_AS_STRINGS: Final = {"numeric-data-types-as-string": "true"}

_ACTION = len('{"action":"')
_BEGIN, _COMMIT, _LOGICAL_MESSAGE = ord("B"), ord("C"), ord("M")
_INSERT, _UPDATE, _DELETE, _TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
_CHANGES = frozenset({_INSERT, _UPDATE, _DELETE, _TRUNCATE})

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BYTEA = "17"

_MAX_NAMES: Final = 10_000  # of tables to remember

_UNKNOWN: Final = (
    "wal2json sends the names only of the columns that it sends, and the table was altered again before this row was "
    "read. Update by hand what depends on the table, and start once without the routes that name it, until "
    "python -m listener status shows a later checkpoint. It cannot happen with ALTER TABLE … REPLICA IDENTITY FULL, "
    "or with CDC_PLUGIN=pgoutput (and another CDC_NAME, because a slot belongs to one plugin)."
)

# The decoder drops rows of tables that no route selects, without reading what follows the name.
_names = re.compile(r'"schema":("(?:[^"\\]|\\.)*"),"table":("(?:[^"\\]|\\.)*")').search

_Types = dict[str, str]  # of columns, as OIDs, in the table's order
_Values = dict[str, bytes | None]


class _Row(NamedTuple):
    """A message about a selected table, kept until the table's definition is certain."""

    action: int
    text: str
    table: TableName
    transaction: Transaction
    ordinal: int


class Wal2JsonDecoder(Decoder):
    """Decodes one replication connection's messages; drops the rows of tables that no route selects.

    It decodes rows by the known definitions of their tables. `verify` then reads the catalogue once for all of them,
    and decodes again if a table turns out to be different.
    """

    def __init__(
        self,
        resolve_type: Callable[[int], ValueType],
        definitions: TableDefinitions,
        watches: Callable[[str, str], bool],
        *,
        source: str,
        codec: str = "utf-8",
        **options: Unpack[DecoderOptions],
    ) -> None:
        """`watches` returns whether a route selects a schema's table; `codec` is Python's name for the encoding.

        `options` are the Decoder's.
        """
        super().__init__(source=source, **options)
        self._resolve_type = resolve_type
        self._definitions = definitions
        self._selects = watches
        self._watches = lru_cache(maxsize=_MAX_NAMES)(self._is_selected)
        self._unselected: set[TableName] = set()  # remembered names that no route selects
        self._unreported: list[TableName] = []  # those not yet passed to `report_gone`
        self._codec = codec
        self._compiled = lru_cache(maxsize=1000)(self._compile)
        self._read_up_to = 0  # the commit LSN of the last transaction read
        self._unverified: list[_Row | EnqueuedTask] = []
        self._verified = 0  # changes of the batch before those rows
        self._certain: set[TableName] = set()  # tables that have not changed since they were observed
        self._is_stale = False  # changes were decoded by an outdated definition
        # Missing columns of certain tables.
        self._missing: dict[tuple[TableName, tuple[str, ...], bool, bool], dict[str, int]] = {}

    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | Hidden | Watermark | None:
        try:
            return self._decode(payload, changes)
        except MALFORMED as error:
            raise self.unknown(f"wal2json message {payload[:60]!r} ({type(error).__name__})") from error

    def _is_selected(self, schema: str, table: str) -> bool:
        selected = self._selects(schema, table)
        if not selected and (schema, table) not in self._unselected and len(self._unselected) < _MAX_NAMES:
            self._unselected.add((schema, table))
            self._unreported.append((schema, table))
        return selected

    def verify(self, changes: list[WALChange]) -> None:
        unverified, self._unverified = self._unverified, []
        rows = [each for each in unverified if isinstance(each, _Row)]
        if rows and (self._looks_again(rows) or self._is_stale):
            self._is_stale = False
            self._forget()
            changes[self._verified :] = self._changes_of(unverified)
        if not self._definitions.is_outdated:
            self._certain.update(
                row.table
                for row in rows
                if self._definitions.is_certain(row.table, row.transaction.commit_lsn)
            )
        if self._unreported:
            names, self._unreported = self._unreported, []
            self._definitions.report_gone(names, lsn=self._read_up_to)

    def may_advance(self) -> bool:
        if self._definitions.is_outdated:
            if not self._definitions.may_refresh_all:
                return False
            if self._definitions.refresh_all(lsn=self._read_up_to):
                self._forget()
        return not self._definitions.is_outdated

    def _forget(self) -> None:
        self._missing.clear()
        self._certain.clear()

    def _looks_again(self, rows: Sequence[_Row]) -> bool:
        """Read the definitions if rows may be of different tables; return whether any has changed."""
        definitions = self._definitions
        tables = frozenset(row.table for row in rows)
        if not definitions.is_outdated:
            tables = frozenset(table for table in tables if not definitions.is_known(table))
        elif definitions.may_refresh_all:
            return definitions.refresh_all(lsn=self._read_up_to)
        return bool(tables) and definitions.refresh(tables, lsn=self._read_up_to)

    def notes(self) -> str | None:
        return self._definitions.notes()

    def _decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | Hidden | Watermark | None:
        action = payload[_ACTION]
        if action in _CHANGES:
            ordinal = self.next_ordinal()
            row = None if ordinal is None else self._row(action, payload, ordinal)
            change = None if row is None else self._change(row, len(changes))
            if change is not None:
                changes.append(change)
        elif action == _BEGIN:
            return self._begin(payload)
        elif action == _COMMIT:
            return self.commit(parse_lsn(json.loads(payload)["nextlsn"]), changes)
        elif action == _LOGICAL_MESSAGE:
            message = json.loads(payload)
            if message["transactional"] and message["prefix"] in self._prefixes:
                return self.take_message(message["content"].encode(), changes, message["prefix"])
        else:
            raise ValueError(action)
        return None

    def _begin(self, payload: bytes) -> Begin | Hidden:
        message = json.loads(payload)
        commit_lsn, xid = parse_lsn(message["lsn"]), int(message["xid"])
        if not self._is_visible(xid):
            return Hidden(commit_lsn, xid)
        self._read_up_to = commit_lsn
        if has_altered(self._read_up_to, parse_lsn(message["nextlsn"])):
            self._certain.clear()
            self._definitions.note_alteration(self._read_up_to)
        committed_at = (datetime.fromisoformat(message["timestamp"]) - _EPOCH) // _MICROSECOND
        return self.begin(self._read_up_to, committed_at)

    def _row(self, action: int, payload: bytes, ordinal: int) -> _Row | None:
        text = payload.decode(self._codec, "surrogateescape")
        table = _table_name(text)
        return _Row(action, text, table, self.transaction, ordinal) if self._watches(*table) else None

    def append(self, task: EnqueuedTask, changes: list[Any]) -> None:
        """Append it, and remember its index among the rows that `verify` may decode again."""
        if self._unverified:
            self._unverified.append(task)
        changes.append(task)

    def _change(self, row: _Row, place: int) -> Any:
        """Return the change at index `place` of the batch, decoded by the current definition."""
        if row.table in self._certain and not self._unverified:  # `verify` replaces all after the first one
            return self._decode_known(row)
        if not self._unverified:
            self._verified = place
        self._unverified.append(row)
        return self._change_of(row)

    def _changes_of(self, rows: Sequence[_Row | EnqueuedTask]) -> list[Any]:
        try:
            return [change for row in rows if (change := self._change_of(row)) is not None]
        except MALFORMED as error:
            raise self.unknown(f"wal2json messages of {rows[0].table} ({type(error).__name__})") from error

    def _change_of(self, row: _Row | EnqueuedTask) -> Any:
        """Return the row as a change. Raise SourceError if too little is known about its table."""
        if isinstance(row, EnqueuedTask):
            return row
        try:
            return self._decode_row(row)
        except UnknownDefinitionError:
            self._is_stale |= self._definitions.refresh([row.table], lsn=self._read_up_to)
        self._forget()
        try:
            return self._decode_row(row)
        except UnknownDefinitionError as unknown:
            raise UndescribedTableError(
                f"The columns of {'.'.join(row.table)} at {format_lsn(row.transaction.commit_lsn)} cannot "
                f"be determined: {unknown}. Nothing was acknowledged.",
                hint=_UNKNOWN,
            ) from unknown

    def _decode_row(self, row: _Row) -> WALChange | None:
        return self._decode_known(row) if self._has_log(row) else None

    def _decode_known(self, row: _Row) -> WALChange | None:
        if row.action == _TRUNCATE:
            kind = self._table(row.table, self._all_columns(row)).truncate
            return WALChange(kind, None, None, row.transaction, row.ordinal)
        message = json.loads(row.text, parse_int=str, parse_float=str)  # numbers keep all digits
        if row.action == _INSERT:
            return self._insert(row, message)
        if row.action == _UPDATE:
            return self._update(row, message)
        return self._delete(row, message)

    def _has_log(self, row: _Row) -> bool:
        """Return whether it is a table's row: wal2json also sends the rows of a refreshed materialized view."""
        kinds = self._definitions.kinds(row.table, row.transaction.commit_lsn)
        if "m" in kinds and len(kinds) > 1:
            raise UnknownDefinitionError("it is a materialized view now, or was one")
        return "m" not in kinds

    def _insert(self, row: _Row, message: Mapping[str, Any]) -> WALChange:
        types, new = _read(message["columns"])
        kind = self._table(row.table, types).insert
        return WALChange(kind, None, [*new.values()], row.transaction, row.ordinal)

    def _update(self, row: _Row, message: Mapping[str, Any]) -> WALChange:
        types, new = _read(message["columns"])
        old_types, old = _read(message.get("identity", ()))
        types |= old_types
        may_be_full = len(old) >= len(new) and old.keys() >= new.keys()
        if not may_be_full or len(old) == len(new):  # otherwise it is the whole row: REPLICA IDENTITY FULL
            types |= self._missing_columns(row, types, is_whole=True, may_be_full=may_be_full)
        # With REPLICA IDENTITY FULL the old row also has the values missing in the new one.
        values: dict[str, Any] = {**dict.fromkeys(types, UNCHANGED), **old, **new}
        is_key = len(old) < len(types)
        # pgoutput sends an old key only if it has changed, wal2json always.
        has_old = not is_key or any(values[column] != value for column, value in old.items())
        known = self._table(row.table, types, tuple(old))
        if not has_old:
            return WALChange(known.update_alone, None, [*values.values()], row.transaction, row.ordinal)
        kind = known.update_by_key if is_key else known.update
        before = [old.get(column) for column in types]
        return WALChange(kind, before, [*values.values()], row.transaction, row.ordinal)

    def _delete(self, row: _Row, message: Mapping[str, Any]) -> WALChange:
        types, old = _read(message["identity"])
        types |= self._missing_columns(row, types, is_whole=False, may_be_full=True)
        known = self._table(row.table, types, tuple(old))
        kind = known.delete_by_key if len(types) > len(old) else known.delete
        before = [old.get(column) for column in types]
        return WALChange(kind, before, None, row.transaction, row.ordinal)

    def _missing_columns(self, row: _Row, sent: _Types, *, is_whole: bool, may_be_full: bool) -> _Types:
        asked = row.table, tuple(sent), is_whole, may_be_full
        found = self._missing.get(asked)
        if found is None:
            found = self._definitions.missing(
                row.table, sent, row.transaction.commit_lsn, is_whole=is_whole, may_be_full=may_be_full
            )
            if self._definitions.is_certain(row.table, row.transaction.commit_lsn):
                self._missing[asked] = found
        return {column: str(oid) for column, oid in found.items()}

    def _all_columns(self, row: _Row) -> _Types:
        found = self._definitions.all_columns(row.table, row.transaction.commit_lsn)
        return {column: str(oid) for column, oid in found.items()}

    def _table(self, name: TableName, types: _Types, key: tuple[str, ...] = ()) -> Table:
        return self._compiled(name, tuple(types.items()), key)

    def _compile(self, name: TableName, types: tuple[tuple[str, str], ...], key: tuple[str, ...]) -> Table:
        self._definitions.note_sent(name, [column for column, _ in types])
        columns = [
            # wal2json prints an OID as a signed number.
            Column(_clean(column), self._resolve_type(int(oid) & 0xFFFFFFFF), column in key)
            for column, oid in types
        ]
        return Table(*name, columns, identity="d" if key else "f")


def _table_name(text: str) -> TableName:
    found = _names(text)
    if found is None:
        raise ValueError("no table")
    return _clean(json.loads(found[1])), _clean(json.loads(found[2]))


def _read(columns: Iterable[Mapping[str, Any]]) -> tuple[_Types, _Values]:
    """Return the types and the values by column; `columns` is a list of the message's."""
    types: _Types = {}
    values: _Values = {}
    for column in columns:
        name = column["name"]
        types[name] = column["typeoid"]
        values[name] = _server_text(column["value"], column["typeoid"])
    return types, values


def _server_text(value: Any, type_oid: str) -> bytes | None:
    if value is None:
        return None
    if value is True:
        return b"t"
    if value is False:
        return b"f"
    text: bytes = value.encode(errors="surrogateescape")
    return rb"\x" + text if type_oid == _BYTEA else text


def _clean(name: str) -> str:
    """Return the name; bytes that are not valid in the encoding look as with the pgoutput decoder."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
