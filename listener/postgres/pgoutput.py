"""The pgoutput protocol, version 1: bytes to changes, nothing else.

Source: the manual's chapters "Logical Streaming Replication Protocol" and "Logical Replication Message
Formats". Version 1 sends a transaction only once it has committed, so nothing needs putting together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from listener.postgres.change import WALChange
from listener.postgres.decoder import Begin, Commit, Decoder
from listener.postgres.table import UNCHANGED, Column, Row, Table, split_tuple
from listener.postgres.values import ValueType

__all__ = ["PgOutputDecoder"]

_BEGIN, _COMMIT, _RELATION = ord("B"), ord("C"), ord("R")
_INSERT, _UPDATE, _DELETE, _TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
_IGNORED = frozenset(b"OYM")  # origin, type (the catalogue knows more), logical message
_ROWS = frozenset({_INSERT, _UPDATE, _DELETE})
_NEW, _KEY = ord("N"), ord("K")  # which tuple follows; the third, O, is the whole old row

_begin = Struct(">xQqI").unpack_from  # commit LSN, commit time, xid
_commit = Struct(">xBQQq").unpack_from  # flags, commit LSN, end LSN, commit time
_relation_oid = Struct(">xI").unpack_from
_truncate = Struct(">xIB").unpack_from  # number of relations, options
_column_type = Struct(">Ii").unpack_from  # type OID, type modifier

_Split = Callable[[bytes, int], tuple[Row, int]]


class PgOutputDecoder(Decoder):
    """Decodes one replication connection's messages: relations are announced per connection."""

    def __init__(
        self, resolve_type: Callable[[int], ValueType], *, source: str, codec: str = "utf-8"
    ) -> None:
        """`codec` is Python's name of the encoding in which texts come."""
        super().__init__(source=source)
        self._resolve_type = resolve_type
        self._codec = codec
        self._split: _Split = split_tuple if codec == "utf-8" else _recoding(codec)
        self._tables: dict[int, Table] = {}

    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        kind = payload[0]
        if kind in _ROWS:
            ordinal = self.next_ordinal()
            if ordinal is not None:
                changes.append(self._row(kind, payload, ordinal))
        elif kind == _BEGIN:
            commit_lsn, committed_at, _xid = _begin(payload)
            return self.begin(commit_lsn, committed_at)
        elif kind == _COMMIT:
            _flags, _commit_lsn, end_lsn, _committed_at = _commit(payload)
            return self.commit(end_lsn)
        elif kind == _RELATION:
            self._announce(payload)
        elif kind == _TRUNCATE:
            changes.extend(self._truncated(payload))
        elif kind not in _IGNORED:
            raise self.unknown(f"message {payload[:1]!r}")
        return None

    def _row(self, kind: int, payload: bytes, ordinal: int) -> WALChange:
        split = self._split
        (oid,) = _relation_oid(payload)
        table, marker = self._tables[oid], payload[5]
        if kind == _INSERT:
            new, _ = split(payload, 6)
            return WALChange(table.insert, None, new, self.transaction, ordinal)
        if kind == _DELETE:
            old, _ = split(payload, 6)
            event = table.delete_by_key if marker == _KEY else table.delete
            return WALChange(event, old, None, self.transaction, ordinal)
        if marker == _NEW:
            new, _ = split(payload, 6)
            return WALChange(table.update, None, new, self.transaction, ordinal)
        old, at = split(payload, 6)
        new, _ = split(payload, at + 1)
        if marker == _KEY:
            return WALChange(table.update_by_key, old, new, self.transaction, ordinal)
        if UNCHANGED in new:  # the old row has what did not change
            new = [before if value is UNCHANGED else value for value, before in zip(new, old, strict=True)]
        return WALChange(table.update, old, new, self.transaction, ordinal)

    def _truncated(self, payload: bytes) -> Iterator[WALChange]:
        count, _options = _truncate(payload)
        for oid in Struct(f">{count}I").unpack_from(payload, 6):
            ordinal = self.next_ordinal()
            if ordinal is not None:
                yield WALChange(self._tables[oid].truncate, None, None, self.transaction, ordinal)

    def _announce(self, payload: bytes) -> None:
        (oid,) = _relation_oid(payload)
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
        # An empty schema name stands for pg_catalog.
        self._tables[oid] = Table(schema or "pg_catalog", name, columns, identity=identity)

    def _text(self, payload: bytes, start: int) -> tuple[str, int]:
        """Read a zero-terminated string; returns it and the place behind its end."""
        end = payload.index(0, start)
        return payload[start:end].decode(self._codec, "backslashreplace"), end + 1


def _recoding(codec: str) -> _Split:
    """Return a `split_tuple` that makes UTF-8 of the texts."""

    def split(data: bytes, start: int) -> tuple[Row, int]:
        row, end = split_tuple(data, start)
        return [
            value.decode(codec, "backslashreplace").encode() if isinstance(value, bytes) else value
            for value in row
        ], end

    return split
