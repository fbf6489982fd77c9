"""A change as it came from the binlog: values as they were logged, made JSON only where somebody looks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from cdc_tasks.changes import EventType
from listener.mysql.table import ABSENT, Kind, Row
from listener.mysql.values import iso_second

__all__ = ["BinlogChange", "Transaction"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Transaction:
    """One committed transaction: what its changes have in common, rendered once."""

    __slots__ = ("committed", "file", "gtid", "id_head", "offset", "position_head", "tail")

    def __init__(self, *, gtid: str, file: str, offset: int, committed: int, server: str) -> None:
        """`gtid` is empty where there are none; `committed` in microseconds since 1970; `server` whose file it is."""
        self.gtid = gtid
        self.file = file
        self.offset = offset
        self.committed = committed
        place = gtid or f"{file}:{offset}"
        # With the time, since numbers and files start again after a RESET.
        name = gtid or f"{server}:{file}:{offset}"
        self.id_head = f"{name.replace(':', '-')}-{committed:X}-".encode()
        self.position_head = f"{place}:".encode()
        seconds, micro = divmod(committed, 1_000_000)
        self.tail = b'","committed_at":"%b.%06d+00:00"}' % (iso_second(seconds), micro)


class BinlogChange:
    """One row inserted, updated or deleted, or one table truncated; fulfils `cdc_tasks.changes.Change`."""

    __slots__ = ("_kind", "_new", "_old", "kind", "ordinal", "stamp", "transaction")

    def __init__(
        self, kind: Kind, old: Row | None, new: Row | None, transaction: Transaction, ordinal: int
    ) -> None:
        self._kind = kind
        self._old = old
        self._new = new
        self.kind = kind.name
        self.transaction = transaction
        self.ordinal = ordinal
        # Its id and position: each task that it fires needs them.
        number = b"%d" % ordinal
        self.stamp = transaction.id_head + number, transaction.position_head + number

    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the argument that a task receives, as JSON with only `columns` in its rows."""
        kind, old, new = self._kind, self._old, self._new
        table = kind.table
        change_id, position = self.stamp
        before = b"null" if old is None else table.render(old, columns)
        after = b"null" if new is None else table.render(new, columns)
        missing = table.absent(columns) if kind.is_whole else self._missing(columns)
        return b'{"id":"%b%b%b,"after":%b,"unavailable":[%b],"position":"%b%b' % (
            change_id, kind.head, before, after, missing, position, self.transaction.tail,
        )  # fmt: skip

    def changed(self, column: str) -> bool | None:
        """Tell whether the column's value differs from before; None where the source did not send both."""
        if self._kind.event != "update":
            return True
        place = self._kind.table.index.get(column)
        if place is None or self._new is None or self._old is None:
            return None
        old, new = self._old[place], self._new[place]
        if new is ABSENT:
            return False  # MINIMAL and NOBLOB leave out what did not change
        if old is ABSENT:
            return None
        return bool(old != new)

    @property
    def schema(self) -> str:
        return self._kind.table.schema

    @property
    def table(self) -> str:
        return self._kind.table.name

    @property
    def event(self) -> EventType:
        return EventType(self._kind.event)

    @property
    def before(self) -> dict[str, Any] | None:
        return self._decoded(self._old)

    @property
    def after(self) -> dict[str, Any] | None:
        return self._decoded(self._new)

    @property
    def row(self) -> dict[str, Any]:
        return (self.after if self._new is not None else self.before) or {}

    @property
    def unavailable(self) -> tuple[str, ...]:
        return tuple(json.loads(b"[%b]" % self._missing(None)))

    @property
    def position(self) -> str:
        return self.stamp[1].decode()

    @property
    def committed_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.transaction.committed)

    @property
    def id(self) -> str:
        return self.stamp[0].decode()

    def _decoded(self, row: Row | None) -> dict[str, Any] | None:
        if row is None:
            return None
        decoded: dict[str, Any] = json.loads(self._kind.table.render(row, None))
        return decoded

    def _missing(self, columns: tuple[str, ...] | None) -> bytes:
        """Return the names, as the inside of a JSON list, of the columns that a row of this change lacks."""
        table, old, new = self._kind.table, self._old, self._new
        if (old is None or ABSENT not in old) and (new is None or ABSENT not in new):
            return table.absent(columns)
        missing = [
            name
            for name in (table.names if columns is None else columns)
            if (new is not None and table.is_missing(new, name))
            or (old is not None and table.is_missing(old, name))
        ]
        return orjson.dumps(missing)[1:-1]
