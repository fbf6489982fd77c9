"""wal2json's messages, format-version 2: JSON to changes, nothing else.

What JSON did to the values is undone, so that a row is the server's text again, as with pgoutput. What cannot
be undone: wal2json before 2.6 writes NaN and Infinity as null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any, Final

from listener.postgres.change import WALChange, parse_lsn
from listener.postgres.decoder import MALFORMED, Begin, Commit, Decoder
from listener.postgres.definitions import TableDefinitions, TableName
from listener.postgres.table import Column, Table
from listener.postgres.tuple_data import UNCHANGED
from listener.postgres.values import ValueType

__all__ = ["NUMBERS_AS_STRINGS", "OPTIONS", "Wal2JsonDecoder"]

# Without types: a type's name with a quote in it makes the JSON invalid. Without a filter on tables: ordinals
# must stay what they are when routes change.
OPTIONS: Final = {
    "format-version": "2",
    "include-lsn": "true",
    "include-timestamp": "true",
    "include-types": "false",
    "include-type-oids": "true",
}
# Since wal2json 2.6, for NaN and Infinity; an older one refuses it with SQLSTATE 22023.
NUMBERS_AS_STRINGS: Final = {"numeric-data-types-as-string": "true"}

_ACTION = len('{"action":"')
_BEGIN, _COMMIT, _LOGICAL_MESSAGE = ord("B"), ord("C"), ord("M")
_INSERT, _UPDATE, _DELETE, _TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
_CHANGES = frozenset({_INSERT, _UPDATE, _DELETE, _TRUNCATE})

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BYTEA = "17"

# Rows of tables that nobody watches are dropped without reading what follows.
_names = re.compile(r'"schema":("(?:[^"\\]|\\.)*"),"table":("(?:[^"\\]|\\.)*")').search

_Types = dict[str, str]  # of columns, as OIDs, in the table's order
_Values = dict[str, bytes | None]


class Wal2JsonDecoder(Decoder):
    """Decodes one replication connection's messages; drops the rows of tables that no route watches."""

    def __init__(
        self,
        resolve_type: Callable[[int], ValueType],
        definitions: TableDefinitions,
        watches: Callable[[str, str], bool],
        *,
        source: str,
        codec: str = "utf-8",
    ) -> None:
        """`watches` tells of schema and table whether a route is interested; `codec` as Python names encodings."""
        super().__init__(source=source)
        self._resolve_type = resolve_type
        self._definitions = definitions
        self._watches = lru_cache(maxsize=10_000)(watches)
        self._codec = codec
        self._committed_at = 0  # microseconds since 2000-01-01 UTC
        self._compiled = lru_cache(maxsize=1000)(self._compile)

    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        try:
            return self._decode(payload, changes)
        except MALFORMED as error:
            raise self.unknown(f"wal2json message {payload[:60]!r} ({type(error).__name__})") from error

    def _decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        action = payload[_ACTION]
        if action in _CHANGES:
            ordinal = self.next_ordinal()
            change = None if ordinal is None else self._change(action, payload, ordinal)
            if change is not None:
                changes.append(change)
        elif action == _BEGIN:
            message = json.loads(payload)
            self._committed_at = (datetime.fromisoformat(message["timestamp"]) - _EPOCH) // _MICROSECOND
            return self.begin(parse_lsn(message["lsn"]), self._committed_at)
        elif action == _COMMIT:
            return self.commit(parse_lsn(json.loads(payload)["nextlsn"]))
        elif action != _LOGICAL_MESSAGE:
            raise ValueError(action)
        return None

    def _change(self, action: int, payload: bytes, ordinal: int) -> WALChange | None:
        text = payload.decode(self._codec, "surrogateescape")
        table = _table_name(text)
        name = self._reported_as(table)
        if name is None:
            return None
        if action == _TRUNCATE:
            return self._truncate(table, name, ordinal)
        message = json.loads(text, parse_int=str, parse_float=str)  # a number keeps each of its digits
        if action == _INSERT:
            return self._insert(name, message, ordinal)
        if action == _UPDATE:
            return self._update(table, name, message, ordinal)
        return self._delete(table, name, message, ordinal)

    def _insert(self, name: TableName, message: Mapping[str, Any], ordinal: int) -> WALChange:
        types, new = _read(message["columns"])
        kind = self._table(name, types).insert
        return WALChange(kind, None, [*new.values()], self.transaction, ordinal)

    def _update(
        self, table: TableName, name: TableName, message: Mapping[str, Any], ordinal: int
    ) -> WALChange:
        types, new = _read(message["columns"])
        old_types, old = _read(message.get("identity", ()))
        types |= old_types
        types |= self._unsent(table, types)
        # With REPLICA IDENTITY FULL the old row also has what is missing in the new one.
        row: dict[str, Any] = {**dict.fromkeys(types, UNCHANGED), **old, **new}
        is_key = len(old) < len(types)
        # pgoutput sends an old key only where it has changed, wal2json always.
        is_told = not is_key or any(row[column] != value for column, value in old.items())
        known = self._table(name, types, tuple(old))
        if not is_told:
            return WALChange(known.update_alone, None, [*row.values()], self.transaction, ordinal)
        kind = known.update_by_key if is_key else known.update
        before = [old.get(column) for column in types]
        return WALChange(kind, before, [*row.values()], self.transaction, ordinal)

    def _delete(
        self, table: TableName, name: TableName, message: Mapping[str, Any], ordinal: int
    ) -> WALChange:
        types, old = _read(message["identity"])
        types |= {column: oid for column, oid in self._columns(table).items() if column not in types}
        known = self._table(name, types, tuple(old))
        kind = known.delete_by_key if len(types) > len(old) else known.delete
        before = [old.get(column) for column in types]
        return WALChange(kind, before, None, self.transaction, ordinal)

    def _truncate(self, table: TableName, name: TableName, ordinal: int) -> WALChange | None:
        if table != name:
            return None  # pgoutput tells nothing either of a partition alone
        kind = self._table(name, self._columns(table)).truncate
        return WALChange(kind, None, None, self.transaction, ordinal)

    def _reported_as(self, table: TableName) -> TableName | None:
        """Return the topmost watched table that this one is a part of, itself included."""
        if not self._watches_partitions:
            return table if self._watches(*table) else None
        ancestors = self._definitions.of(table, self._committed_at).ancestors
        return next((name for name in reversed(ancestors) if self._watches(*name)), None)

    def _columns(self, table: TableName) -> _Types:
        definition = self._definitions.of(table, self._committed_at)
        return {column.name: str(column.type_oid) for column in definition.columns}

    def _unsent(self, table: TableName, sent: _Types) -> _Types:
        """Return the columns that were left out of a new row because their TOAST values did not change."""
        known = self._definitions.known(table)
        if known is None or any(column.toastable and column.name not in sent for column in known.columns):
            known = self._definitions.of(table, self._committed_at)
        return {
            column.name: str(column.type_oid)
            for column in known.columns
            if column.toastable and column.name not in sent
        }

    def _table(self, name: TableName, types: _Types, key: tuple[str, ...] = ()) -> Table:
        return self._compiled(name, tuple(types.items()), key)

    def _compile(self, name: TableName, types: tuple[tuple[str, str], ...], key: tuple[str, ...]) -> Table:
        columns = [
            # wal2json prints an OID as if it had a sign.
            Column(_clean(column), self._resolve_type(int(oid) & 0xFFFFFFFF), column in key)
            for column, oid in types
        ]
        return Table(*name, columns, identity="d" if key else "f")

    @cached_property
    def _watches_partitions(self) -> bool:
        return any(self._watches(*name) for name in self._definitions.partitioned())


def _table_name(text: str) -> TableName:
    found = _names(text)
    if found is None:
        raise ValueError("no table")
    return _clean(json.loads(found[1])), _clean(json.loads(found[2]))


def _read(columns: Iterable[Mapping[str, Any]]) -> tuple[_Types, _Values]:
    """Return types and values, by column, of what the message has as a list of columns."""
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
    """Return the name with bytes that are not of the encoding as the pgoutput decoder shows them."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
