"""The pgoutput protocol, version 1: bytes to changes, nothing else.

Source: the manual's chapters "Logical Streaming Replication Protocol" and "Logical Replication Message
Formats". Version 1 sends a transaction only once it has committed, so nothing needs putting together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from listener.postgres.change import Transaction, WALChange
from listener.postgres.decoder import Begin, Commit, Decoder
from listener.postgres.table import UNCHANGED, Column, Row, Table, split_tuple
from listener.postgres.values import ValueType

__all__ = ["PgOutputDecoder"]

_BEGIN, _COMMIT, _RELATION = ord("B"), ord("C"), ord("R")
_INSERT, _UPDATE, _DELETE, _TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
_IGNORED = frozenset(b"OYM")  # origin, type (the catalogue knows more), logical message
_KEY, _OLD = ord("K"), ord("O")

_begin = Struct(">xQqI").unpack_from  # commit LSN, commit time, xid
_commit = Struct(">xBQQq").unpack_from  # flags, commit LSN, end LSN, commit time
_relation_oid = Struct(">xI").unpack_from
_truncate = Struct(">xIB").unpack_from  # number of relations, options
_column_type = Struct(">Ii").unpack_from  # type OID, type modifier


class PgOutputDecoder(Decoder):
    """Decodes one replication connection's messages: relations are announced per connection."""

    def __init__(self, resolve_type: Callable[[int], ValueType], *, source: str) -> None:
        super().__init__(source=source)
        self._resolve_type = resolve_type
        self._tables: dict[int, Table] = {}

    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        kind = payload[0]
        if kind == _INSERT:
            ordinal = self.next_ordinal()
            if ordinal is not None:
                new, _ = split_tuple(payload, 6)
                changes.append(
                    WALChange(self._table(payload).insert, None, new, False, self.transaction, ordinal)
                )
        elif kind == _UPDATE:
            ordinal = self.next_ordinal()
            if ordinal is not None:
                changes.append(self._update(payload, ordinal))
        elif kind == _DELETE:
            ordinal = self.next_ordinal()
            if ordinal is not None:
                old, _ = split_tuple(payload, 6)
                is_key = payload[5] == _KEY
                changes.append(
                    WALChange(self._table(payload).delete, old, None, is_key, self.transaction, ordinal)
                )
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

    def _table(self, payload: bytes) -> Table:
        (oid,) = _relation_oid(payload)
        return self._tables[oid]

    def _update(self, payload: bytes, ordinal: int) -> WALChange:
        old: Row | None = None
        at = 6
        marker = payload[5]
        if marker in (_KEY, _OLD):
            old, at = split_tuple(payload, 6)
            at += 1
        new, _ = split_tuple(payload, at)
        if marker == _OLD and UNCHANGED in new and old is not None:
            new = [before if value is UNCHANGED else value for value, before in zip(new, old, strict=True)]
        return WALChange(self._table(payload).update, old, new, marker == _KEY, self.transaction, ordinal)

    def _truncated(self, payload: bytes) -> Iterator[WALChange]:
        count, _options = _truncate(payload)
        for oid in Struct(f">{count}I").unpack_from(payload, 6):
            ordinal = self.next_ordinal()
            if ordinal is not None:
                yield WALChange(self._tables[oid].truncate, None, None, False, self.transaction, ordinal)

    def _announce(self, payload: bytes) -> None:
        (oid,) = _relation_oid(payload)
        schema, at = _text(payload, 5)
        name, at = _text(payload, at)
        identity = chr(payload[at])
        count = payload[at + 1] << 8 | payload[at + 2]
        at += 3
        columns = []
        for _ in range(count):
            key = bool(payload[at] & 1)
            column, at = _text(payload, at + 1)
            type_oid, _modifier = _column_type(payload, at)
            at += 8
            columns.append(Column(column, self._resolve_type(type_oid), key))
        # An empty schema name stands for pg_catalog.
        self._tables[oid] = Table(schema or "pg_catalog", name, columns, identity=identity)


def _text(payload: bytes, start: int) -> tuple[str, int]:
    """Read a zero-terminated string; returns it and the place behind its end."""
    end = payload.index(0, start)
    return payload[start:end].decode(errors="backslashreplace"), end + 1
