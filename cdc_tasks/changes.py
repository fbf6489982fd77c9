"""What a change in the database looks like: the one thing that the listener and the workers both know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

__all__ = ["Change", "EventType", "RowChange"]


class EventType(StrEnum):
    """What happened to a row, or, for TRUNCATE, to a whole table. ALL stands for the four in a route."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    ALL = "all"


class Change(Protocol):
    """What predicates and `args=` of a route may rely on, whether the values are decoded yet or not."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """One row inserted, updated or deleted, or one table truncated.

    Values are what JSON can carry: integers and floats as numbers, `numeric` as str, dates and
    timestamps as ISO 8601 str, `bytea` as base64 str, arrays as lists, `json` as the value itself,
    everything else as the server's own text.
    """

    id: str  # from source and position alone: the same on every replay
    schema: str
    table: str
    event: EventType
    before: Mapping[str, Any] | None  # the old row as far as the replica identity gives it
    after: Mapping[str, Any] | None  # None for a delete and for a truncate
    unavailable: tuple[str, ...] = ()  # columns whose value the source did not send: not the same as NULL
    position: str  # where it stands in the source's log; compare only with `position_key`
    committed_at: datetime

    @property
    def row(self) -> Mapping[str, Any]:
        """The row as it is now, or as it was before a delete; empty for a truncate."""
        return self.after if self.after is not None else self.before or {}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RowChange:
        """Build one from the argument that a task receives; raises KeyError where a field is missing."""
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
        )

    def to_message(self) -> dict[str, Any]:
        """Return the argument that a task receives, ready for JSON."""
        return {
            "id": self.id,
            "schema": self.schema,
            "table": self.table,
            "event": self.event.value,
            "before": self.before,
            "after": self.after,
            "unavailable": list(self.unavailable),
            "position": self.position,
            "committed_at": self.committed_at.isoformat(timespec="microseconds"),
        }
