"""A change as the source logged it: values are decoded only when they are read."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

from pybase64 import b64encode

from cdc_tasks.changes import ChangeTransaction, Context, EventType

__all__ = ["LoggedChange", "LoggedTransaction"]


class _Table(Protocol):
    schema: str
    name: str


class _Kind(Protocol):
    name: tuple[str, str, str]
    event: str

    @property
    def table(self) -> _Table: ...


class LoggedTransaction:
    """One committed transaction: the data common to its changes, rendered once."""

    __slots__ = ("context", "id_head", "is_muted", "last", "position_head", "tail")

    id_head: bytes  # start of its changes' ids and positions, before the ordinal
    position_head: bytes
    tail: bytes  # the end of a change's JSON, starting with the closing quotation mark of the position
    is_muted: bool  # its changes fire nothing, except routes that take muted changes
    context: Context | None  # set by the transaction
    last: int  # ordinal of its last change; set when the end of the transaction is read

    def muted(self) -> Self:
        """Return the same transaction for its muted changes."""
        other = copy(self)
        other.is_muted = True
        return other

    def within(self, context: Context | None) -> Self:
        """Return the same transaction for its changes with this context."""
        other = copy(self)
        other.put_into(context)
        return other

    def put_into(self, context: Context | None) -> None:
        """Set its context, before its first change."""
        end = len(self.tail) - 1 if self.context is None else self.tail.index(_CONTEXT)
        said = b"" if context is None else _CONTEXT + context.json
        self.tail = self.tail[:end] + said + b"}"
        self.context = context

    def is_last(self, ordinal: int) -> bool:
        """Return whether its last change has this ordinal."""
        return getattr(self, "last", None) == ordinal


_CONTEXT: Final = b',"context":'
_READ: Final = EventType.READ.value

KindT = TypeVar("KindT", bound=_Kind)
TransactionT = TypeVar("TransactionT", bound=LoggedTransaction)
RowT = TypeVar("RowT", bound=Sequence[Any])


class LoggedChange(ABC, Generic[KindT, TransactionT, RowT]):
    """One row inserted, updated or deleted, or one table truncated; implements `cdc_tasks.changes.Change`."""

    __slots__ = ("_kind", "_new", "_old", "commit", "kind", "ordinal", "stamp")

    is_of_texts: ClassVar[bool] = (
        False  # its rows are server text: they can be kept unchanged, and rendered later
    )

    def __init__(
        self, kind: KindT, old: RowT | None, new: RowT | None, commit: TransactionT, ordinal: int
    ) -> None:
        self._kind = kind
        self._old = old
        self._new = new
        self.kind = kind.name
        self.commit = commit
        self.ordinal = ordinal
        # Its id and position: each fired task needs both.
        number = b"%d" % ordinal
        self.stamp = commit.id_head + number, commit.position_head + number

    def with_id(self, name: bytes) -> Self:
        """Return the same change with another id."""
        other = copy(self)
        other.stamp = name, self.stamp[1]
        return other

    @abstractmethod
    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the argument that a task receives, as JSON with only `columns` in its rows."""

    @abstractmethod
    def changed(self, column: str) -> bool | None:
        """Return whether the column's value differs from before; None if the source did not send both."""

    @property
    @abstractmethod
    def committed_at(self) -> datetime: ...

    @property
    def schema(self) -> str:
        return self._kind.table.schema

    @property
    def table(self) -> str:
        return self._kind.table.name

    @property
    def event(self) -> EventType:
        return EventType(self._kind.event)

    def row_json(self, columns: tuple[str, ...]) -> bytes:
        """Return `columns` of `row` as a JSON object, without those that the source did not send."""
        if self._new is not None:
            return self._new_json(self._new, columns)
        return b"{}" if self._old is None else self._old_json(self._old, columns)

    def old_row_json(self, columns: tuple[str, ...]) -> bytes:
        """Return `columns` of the old row as a JSON object, without those that the source did not send."""
        return b"{}" if self._old is None else self._old_json(self._old, columns)

    @abstractmethod
    def changed_columns(self) -> tuple[str, ...] | None:
        """Return the columns whose values an update changed; None if the source did not send the old row."""

    @property
    def before(self) -> dict[str, Any] | None:
        return None if self._old is None else json.loads(self._old_json(self._old))

    @property
    def after(self) -> dict[str, Any] | None:
        return None if self._new is None else json.loads(self._new_json(self._new))

    @property
    def row(self) -> dict[str, Any]:
        return (self.after if self._new is not None else self.before) or {}

    @property
    def unavailable(self) -> tuple[str, ...]:
        return tuple(json.loads(b"[%b]" % self._missing(None)))

    @property
    def is_muted(self) -> bool:
        """Whether the transaction is muted: the change fires nothing, except routes that take muted changes."""
        return self.commit.is_muted

    @property
    def context(self) -> dict[str, Any] | None:
        """The context set by the transaction; None if there is none."""
        context = self.commit.context
        return None if context is None else dict(context.values)

    @property
    def transaction(self) -> ChangeTransaction:
        """The change's number within its transaction."""
        if self._kind.event == _READ:  # it has no transaction
            return ChangeTransaction(self.id, 1, is_last=True)
        head, _, _ = self.stamp[0].rpartition(b"-")
        return ChangeTransaction(head.decode(), self.ordinal + 1, self.commit.is_last(self.ordinal))

    def logged(self) -> dict[str, Any]:
        """Return the rows as they were logged, for JSON: bytes as base64, other values as their `repr`."""
        return {"before": _shown(self._old), "after": _shown(self._new)}

    @property
    def logged_kind(self) -> KindT:
        """The data common to all changes of its table and event."""
        return self._kind

    @property
    def logged_old(self) -> RowT | None:
        """The old row as it was logged."""
        return self._old

    @property
    def logged_new(self) -> RowT | None:
        """The new row as it was logged."""
        return self._new

    @property
    def position(self) -> str:
        return self.stamp[1].decode()

    @property
    def id(self) -> str:
        return self.stamp[0].decode()

    @abstractmethod
    def _old_json(self, row: RowT, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the old row with the `columns` (None: all) that the source sent."""

    @abstractmethod
    def _new_json(self, row: RowT, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the new row, as `_old_json` does."""

    @abstractmethod
    def _missing(self, columns: tuple[str, ...] | None) -> bytes:
        """Return the names of the columns that the source did not send, as the inside of a JSON list."""


def _shown(row: Sequence[Any] | None) -> list[str] | None:
    if row is None:
        return None
    return [b64encode(value).decode() if isinstance(value, bytes) else repr(value) for value in row]
