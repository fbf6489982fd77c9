"""What a change in the database looks like, for the listener and for the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

__all__ = [
    "DELETE",
    "INSERT",
    "READ",
    "TRUNCATE",
    "UPDATE",
    "Change",
    "ChangeTransaction",
    "Commit",
    "Context",
    "EventType",
    "KnownCommit",
    "RowChange",
    "position_key",
]


class EventType(StrEnum):
    """What happened to a row, or for TRUNCATE to a whole table. READ: a row as a backfill read it.

    In a route, ALL means the four changes, without READ. ENQUEUED is not a change and not for routes: it marks a task
    that a transaction enqueued, where other tasks name the event that fired them.
    """

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    READ = "read"
    ENQUEUED = "enqueued"
    ALL = "all"


INSERT: Final = EventType.INSERT
UPDATE: Final = EventType.UPDATE
DELETE: Final = EventType.DELETE
TRUNCATE: Final = EventType.TRUNCATE
READ: Final = EventType.READ


class Context:
    """A transaction's context: who made it, in which request. All its changes share one object."""

    __slots__ = ("json", "values")

    def __init__(self, values: Mapping[str, Any], json: bytes) -> None:
        """`values` are JSON scalars, and `json` is the same as JSON. Neither changes afterwards."""
        self.values = values
        self.json = json

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Context:
        """Return the context with these values, which are known to be JSON scalars."""
        return cls(values, json.dumps(values).encode())


class Commit(Protocol):
    """What the changes of one transaction have in common."""

    @property
    def context(self) -> Context | None: ...


@dataclass(frozen=True, slots=True)
class KnownCommit:
    """A transaction of which only the context is known."""

    context: Context | None = None


class ChangeTransaction(NamedTuple):
    """A change's place in its transaction: `change.transaction`."""

    id: str  # unique forever; for a row that a backfill read, the change's own id
    # The change's number, from 1, in the order of the log. Numbers ascend, with holes for rows that no route watches
    # and for tasks that the transaction enqueues.
    number: int
    is_last: (
        bool | None
    )  # whether it is the transaction's last change; None: the task's message does not have this


class Change(Protocol):
    """What a route's predicates and `args=` may use, before or after the values are decoded."""

    @property
    def schema(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def event(self) -> EventType: ...
    @property
    def before(self) -> Mapping[str, Any] | None: ...
    @property
    def after(self) -> Mapping[str, Any] | None: ...
    @property
    def row(self) -> Mapping[str, Any]: ...
    @property
    def unavailable(self) -> tuple[str, ...]: ...
    @property
    def position(self) -> str: ...
    @property
    def committed_at(self) -> datetime: ...
    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> tuple[str, str, str]: ...  # schema, table, event's value
    @property
    def stamp(self) -> tuple[bytes, bytes]: ...  # id and position, encoded
    @property
    def context(self) -> Mapping[str, Any] | None: ...  # of its transaction; None: it has none
    @property
    def transaction(self) -> ChangeTransaction: ...
    @property
    def commit(self) -> Commit: ...
    @property
    def is_muted(
        self,
    ) -> bool: ...  # its transaction mutes it: it fires only routes with even_muted=True

    def changed(self, column: str) -> bool | None: ...
    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes: ...
    def row_json(
        self, columns: tuple[str, ...]
    ) -> bytes: ...  # `row`, without those that the source did not send


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """One row that was inserted, updated or deleted, one truncated table, or one row as a backfill read it.

    Values are JSON values: integers and floats are numbers, `numeric` is str, dates and timestamps are ISO 8601 str,
    `bytea` is base64 str, arrays are lists, `json` is the value itself, all others are the server's own text.
    """

    # Made only from the source, the position and the commit time; for a read, from the backfill and the row's key.
    # So it is the same on every replay.
    id: str
    schema: str  # on MySQL and MariaDB the database
    table: str  # for a partition, the partitioned table
    event: EventType  # never ALL
    before: Mapping[str, Any] | None  # the old row, with the columns that the replica identity has
    after: Mapping[str, Any] | None  # None for a delete and a truncate
    unavailable: tuple[str, ...] = ()  # columns whose value the source did not send (not NULL)
    position: str  # its place in the source's log; compare only with `position_key`
    committed_at: datetime  # with its time zone
    context: Mapping[str, Any] | None = None  # of its transaction (`cdc_tasks.context`)
    is_last: bool | None = field(default=None, compare=False)  # of its transaction; None: unknown

    @property
    def transaction(self) -> ChangeTransaction:
        """Its place in its transaction. A row that a backfill read is alone in it."""
        head, _, ordinal = self.id.rpartition("-")
        if self.event is EventType.READ or not ordinal.isdecimal():
            return ChangeTransaction(self.id, 1, is_last=True)
        return ChangeTransaction(head, int(ordinal) + 1, self.is_last)

    @property
    def commit(self) -> Commit:
        """What the changes of its transaction have in common."""
        return KnownCommit(None if self.context is None else Context.of(self.context))

    @property
    def row(self) -> Mapping[str, Any]:
        """The row after the change; for a delete, the row before it; empty for a truncate."""
        return self.after if self.after is not None else self.before or {}

    @property
    def kind(self) -> tuple[str, str, str]:
        """Schema, table and event's value: the key for finding routes."""
        return self.schema, self.table, self.event.value

    @property
    def stamp(self) -> tuple[bytes, bytes]:
        """Its id and its position, as messages carry them."""
        return self.id.encode(), self.position.encode()

    @property
    def is_muted(self) -> bool:
        """False: a change that a task receives has fired it."""
        return False

    def changed(self, column: str) -> bool | None:
        """Return whether the column's value differs from before; None if the source did not send both.

        An insert, a delete, a truncate and a read count as a change of every column.
        """
        if self.event is not EventType.UPDATE:
            return True
        if self.before is None or self.after is None or column not in self.before or column not in self.after:
            return None
        return bool(self.before[column] != self.after[column])

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RowChange:
        """Build one from the argument that a task receives. Raise KeyError if a field is missing."""
        return cls(
            id=message["id"],
            schema=message["schema"],
            table=message["table"],
            event=EventType(message["event"]),
            before=message["before"],
            after=message["after"],
            unavailable=tuple(message["unavailable"]),
            position=message["position"],
            committed_at=datetime.fromisoformat(message["committed_at"]),
            context=message.get("context"),
            is_last=message.get("is_last"),
        )

    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the argument that a task receives, as JSON with only `columns` in its rows."""
        # In ASCII: half of a surrogate pair has no UTF-8.
        return json.dumps(self.to_message(columns)).encode()

    def row_json(self, columns: tuple[str, ...]) -> bytes:
        """Return these columns of `row` as a JSON object, without those that the source did not send."""
        return json.dumps(_only(self.row, columns)).encode()

    def to_message(self, columns: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the argument that a task receives, with only `columns` (None: all) in its rows."""
        context = {} if self.context is None else {"context": dict(self.context)}
        return {
            "id": self.id,
            "schema": self.schema,
            "table": self.table,
            "event": self.event.value,
            "before": _only(self.before, columns),
            "after": _only(self.after, columns),
            "unavailable": [name for name in self.unavailable if columns is None or name in columns],
            "position": self.position,
            "committed_at": self.committed_at.isoformat(timespec="microseconds"),
            **context,
        }


def position_key(position: str) -> tuple[str, str]:
    """Return (log, place) of a change's position. Places in the same log compare as texts.

    Places in different logs do not compare: after a failover MySQL counts from 1 again, under another name. On
    PostgreSQL all places of one cluster compare, even after a failover or a restore. Raises ValueError.
    """
    place, _, ordinal = position.rpartition(":")
    log, number, later = _in_wal(place) if "/" in place else _in_binlog(place)
    return log, f"{later}{number:032x}.{int(ordinal):08x}"


def _in_wal(place: str) -> tuple[str, int, str]:
    """Parse PostgreSQL's LSN and the era before it."""
    era, _, lsn = place.rpartition("@")
    high, low = lsn.split("/")
    return "", _era(era) << 64 | int(high, 16) << 32 | int(low, 16), ""


def _in_binlog(text: str) -> tuple[str, int, str]:
    """Parse a place in a binlog and the epoch after it: numbers may repeat, see transaction_progress.py."""
    place, _, epoch = text.partition("@")
    # It sorts after all places without an epoch: they begin with a digit or a to f.
    later = f"g{int(epoch):016x}." if epoch else ""
    return *_place(place), later


def _place(place: str) -> tuple[str, int]:
    log, _, number = place.rpartition(":")
    if not log:  # MariaDB's GTID: domain-server-number
        domain, _, number = place.split("-")
        return domain, int(number)
    name, _, file = log.rpartition(".")
    if name and file.isdigit():  # binlog.000003:1234
        return name, int(file) << 64 | int(number)
    return log, int(number)  # MySQL's GTID: server[:tag]:number


def _era(era: str) -> int:
    """Return the number of an era (timeline, or generation.timeline). The first era is empty, and 0."""
    generation, _, timeline = era.rpartition(".")
    return int(generation or 0) << 32 | int(timeline or 1) - 1


def _only(row: Mapping[str, Any] | None, columns: tuple[str, ...] | None) -> dict[str, Any] | None:
    if row is None or columns is None:
        return None if row is None else dict(row)
    return {name: row[name] for name in columns if name in row}
