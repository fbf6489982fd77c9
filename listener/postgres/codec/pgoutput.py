"""Decodes the pgoutput protocol, version 1: bytes to changes, nothing else.

Source: the manual's chapters "Logical Streaming Replication Protocol" and "Logical Replication Message
Formats". Version 1 sends a transaction only after it has committed, so there are no parts to assemble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Unpack

from cdc_tasks.words import counted
from listener.core.source import SourceError
from listener.postgres.codec.change import WALChange
from listener.postgres.codec.decoder import (
    MALFORMED,
    Begin,
    Commit,
    Decoder,
    DecoderOptions,
    Hidden,
    Watermark,
)
from listener.postgres.codec.table import Column, Kind, Table
from listener.postgres.codec.tuple_data import UNCHANGED, Row, splitting
from listener.postgres.codec.values import ValueType

__all__ = ["PgOutputDecoder"]

_BEGIN, _COMMIT, _RELATION = ord("B"), ord("C"), ord("R")
_INSERT, _UPDATE, _DELETE, _TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
_MESSAGE = ord("M")  # a logical message
# Origin, type (the catalogue knows more), and stream abort. PostgreSQL 18 sends the last for some large transactions
# that were aborted, even to a reader that has not asked for streaming. None of their changes were sent.
_IGNORED = frozenset(b"OYA")
_ROWS = frozenset({_INSERT, _UPDATE, _DELETE})
_OF_A_TABLE = frozenset({b"I", b"U", b"D"})  # the table's OID follows
_NEW, _KEY = ord("N"), ord("K")  # the tuple that follows; the third kind, O, is the whole old row

# Maximum columns of compiled tables: 1,500 tables of ten columns, about 25 MB. A table compiles in 0.1 ms.
_MOST_COMPILED = 30_000
_TABLE_ITSELF = 10  # memory of a table besides its columns, measured in columns

_begin = Struct(">xQqI").unpack_from  # commit LSN, commit time, xid
_commit = Struct(">xBQQq").unpack_from  # flags, commit LSN, end LSN, commit time
_truncate = Struct(">xIB").unpack_from  # number of relations, options
_TRANSACTIONAL = 1  # a logical message's flag
_message_head = 10  # bytes before the prefix: kind, flags, and its own LSN
_BEFORE_CONTENT = 5  # bytes: the end of the prefix, and the length of the content, which is the rest
_column_type = Struct(">Ii").unpack_from  # type OID, type modifier


class _Tables(dict[bytes, Table]):
    """The recently used tables, compiled, and the descriptions of all tables that the server has sent."""

    def __init__(self, compile_table: Callable[[bytes], Table]) -> None:
        self._compile = compile_table
        self._announced: dict[bytes, bytes] = {}
        self._size = 0  # of tables compiled since it was empty

    def announce(self, oid: bytes, payload: bytes) -> None:
        if self._announced.get(oid) != payload:  # otherwise the server repeats a description
            self._announced[oid] = payload
            self.pop(oid, None)

    def __missing__(self, oid: bytes) -> Table:
        table = self._compile(self._announced[oid])
        size = len(table.columns) + _TABLE_ITSELF
        self._size += size
        if self._size > _MOST_COMPILED:
            self.clear()
            self._size = size
        self[oid] = table
        return table


class PgOutputDecoder(Decoder):
    """Decodes one replication connection's messages: the server describes its tables once per connection."""

    def __init__(
        self,
        resolve_type: Callable[[int], ValueType],
        *,
        source: str,
        codec: str = "utf-8",
        announced: Callable[[int, tuple[str, str]], None] | None = None,
        **options: Unpack[DecoderOptions],
    ) -> None:
        """`codec` is Python's name for the text encoding; `options` are the Decoder's.

        `announced` is called with a table's OID and name before its changes, and may raise.
        """
        super().__init__(source=source, **options)
        self._announced = announced
        self._resolve_type = resolve_type
        self._codec = codec
        self._prefix_of = {each.encode(codec, "backslashreplace"): each for each in self._prefixes}
        self._split, self._split_both = splitting(codec)
        self._tables = _Tables(self._compile)  # by OID, as messages carry it

    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | Hidden | Watermark | None:
        try:
            kind = payload[0]
            if kind not in _ROWS:
                return self._decode_other(kind, payload, changes)
            ordinal = self._ordinal  # `next_ordinal`, without a call per row
            self._ordinal = ordinal + 1
            if ordinal > self._published_up_to:
                table = self._tables[payload[1:5]]
                if kind == _INSERT:
                    event, old, new = table.insert, None, self._split(payload, 6)
                elif kind == _UPDATE:
                    event, old, new = self._updated(table, payload)
                else:
                    old, new = self._split(payload, 6), None
                    event = table.keyed_by(old).delete_by_key if payload[5] == _KEY else table.delete
                changes.append(WALChange(event, old, new, self.transaction, ordinal))
        except MALFORMED as error:
            raise self._malformed(payload, error) from error
        return None

    def _decode_other(
        self, kind: int, payload: bytes, changes: list[WALChange]
    ) -> Begin | Commit | Hidden | Watermark | None:
        if kind == _BEGIN:
            commit_lsn, committed_at, xid = _begin(payload)
            if not self._is_visible(xid):
                return Hidden(commit_lsn, xid)
            return self.begin(commit_lsn, committed_at)
        if kind == _COMMIT:
            _flags, _commit_lsn, end_lsn, _committed_at = _commit(payload)
            return self.commit(end_lsn, changes)
        if kind == _MESSAGE:
            return self._read_message(payload, changes)
        if kind == _RELATION:
            self._tables.announce(payload[1:5], payload)
        elif kind == _TRUNCATE:
            changes.extend(self._truncated(payload))
        elif kind not in _IGNORED:
            raise ValueError("no known kind")
        return None

    def _read_message(self, payload: bytes, changes: list[WALChange]) -> Watermark | None:
        """Process a logical message of a transaction if it is for us: other programs also write some."""
        end = payload.index(0, _message_head)
        prefix = self._prefix_of.get(payload[_message_head:end])
        if prefix is None or not payload[1] & _TRANSACTIONAL:
            return None
        return self.take_message(payload[end + _BEFORE_CONTENT :], changes, prefix)

    def _malformed(self, payload: bytes, error: Exception) -> SourceError:
        """Return the error for a message that cannot be decoded, without a row's values."""
        table = self._tables.get(payload[1:5]) if payload[:1] in _OF_A_TABLE else None
        of = f" of table {table.schema}.{table.name}" if table else ""
        return self.unknown(
            f"message {payload[:1]!r}{of}, {len(payload)} bytes long ({type(error).__name__}: {error})"
        )

    def _updated(self, table: Table, payload: bytes) -> tuple[Kind, Row | None, Row]:
        marker = payload[5]
        if marker == _NEW:
            return table.update_alone, None, self._split(payload, 6)
        old, new = self._split_both(payload, 6)
        if marker == _KEY:
            return table.keyed_by(old).update_by_key, old, new
        if UNCHANGED in new:  # the old row has the unchanged values
            new = [before if value is UNCHANGED else value for value, before in zip(new, old, strict=True)]
        return table.update, old, new

    def _truncated(self, payload: bytes) -> Iterator[WALChange]:
        count, _options = _truncate(payload)
        if 6 + 4 * count > len(payload):
            raise ValueError(counted(count, "table"))
        for at in range(6, 6 + 4 * count, 4):
            ordinal = self.next_ordinal()
            if ordinal is not None:
                table = self._tables[payload[at : at + 4]]
                yield WALChange(table.truncate, None, None, self.transaction, ordinal)

    def _compile(self, payload: bytes) -> Table:
        schema, at = self._text(payload, 5)
        name, at = self._text(payload, at)
        identity = chr(payload[at])
        count = payload[at + 1] << 8 | payload[at + 2]
        at += 3
        columns = []
        for _ in range(count):
            key = bool(payload[at] & 1)
            column, at = self._text(payload, at + 1)
            type_oid, _modifier = _column_type(payload, at)
            at += 8
            columns.append(Column(column, self._resolve_type(type_oid), key))
        if self._announced is not None:
            self._announced(int.from_bytes(payload[1:5]), (schema, name))
        # An empty schema name stands for pg_catalog.
        return Table(schema or "pg_catalog", name, columns, identity=identity)

    def _text(self, payload: bytes, start: int) -> tuple[str, int]:
        """Return the zero-terminated string at `start`, and the index after its end."""
        end = payload.index(0, start)
        return payload[start:end].decode(self._codec, "backslashreplace"), end + 1
