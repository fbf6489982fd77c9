"""Ready-made conditions for a route's `when=`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.contexts import check_context

__all__ = ["ReadyMade", "When", "became", "changed", "in_context"]

When = Callable[[Change], object]


@runtime_checkable
class ReadyMade(Protocol):
    """A condition that can explain its result for a change."""

    def because(self, change: Change) -> str:
        """Return why it fires for this change, or why not; without values of the row."""


@dataclass(frozen=True, slots=True)
class _Changed:
    columns: tuple[str, ...]  # it compares these: the source must send them

    def __call__(self, change: Change) -> bool:
        for column in self.columns:  # noqa: SIM110 - `any` costs twice as much, and this is a hot path
            if change.changed(column) is not False:
                return True
        return False

    @property
    def without_old_values(self) -> str:
        """When it fires if the source does not send old values, for `check`."""
        return "at every UPDATE"

    def because(self, change: Change) -> str:
        """Return why it fires for this change, or why not; without values of the row."""
        if change.event is not EventType.UPDATE:
            return f"{change.event.value} counts as a change of every column"
        found = {column: change.changed(column) for column in self.columns}
        if changed := [column for column, is_changed in found.items() if is_changed]:
            return f"{_and(changed)} changed"
        if unknown := [column for column, is_changed in found.items() if is_changed is None]:
            return f"the old or the new value of {_and(unknown)} is not known, which counts as a change"
        return f"{_and(self.columns)} did not change"

    def __repr__(self) -> str:
        return f"changed({', '.join(map(repr, self.columns))})"


@dataclass(frozen=True, slots=True)
class _Became:
    columns: tuple[str, ...]
    value: Any = field(hash=False)  # json and arrays are dicts and lists

    def __call__(self, change: Change) -> bool:
        (column,) = self.columns
        after = change.after
        return after is not None and after.get(column) == self.value and change.changed(column) is not False

    @property
    def without_old_values(self) -> str:
        """When it fires if the source does not send old values, for `check`."""
        return f"at every UPDATE of a row whose {self.columns[0]} is {self.value!r} then, new or not"

    def because(self, change: Change) -> str:
        """Return why it fires for this change, or why not; without values of the row."""
        (column,) = self.columns
        after = change.after
        if after is None:
            return "there is no new row"
        if column not in after:
            return f"the new row has no {column}"
        if after[column] != self.value:
            return f"{column} is not {self.value!r}"
        if change.event is not EventType.UPDATE:
            return f"{column} is {self.value!r}, and the row is new"
        is_changed = change.changed(column)
        if is_changed is None:
            return f"{column} is {self.value!r}, and the old value is not known, which counts as a change"
        return f"{column} became {self.value!r}" if is_changed else f"{column} was {self.value!r} before, too"

    def __repr__(self) -> str:
        return f"became({self.columns[0]!r}, {self.value!r})"


@dataclass(frozen=True, slots=True)
class _InContext:
    values: dict[str, Any] = field(hash=False)

    def __call__(self, change: Change) -> bool:
        context = change.commit.context
        return context is not None and self.values.items() <= context.values.items()

    def because(self, change: Change) -> str:
        """Return why it fires for this change, or why not; without values of the context."""
        context = change.commit.context
        if context is None:
            return "the transaction has no context"
        others = [name for name, value in self.values.items() if context.values.get(name) != value]
        mismatches = [f"{name} is not {self.values[name]!r}" for name in others]
        return (
            f"in its context {_and(mismatches)}" if mismatches else "the context of the transaction matches"
        )

    def __repr__(self) -> str:
        return f"in_context({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


def changed(*columns: str) -> When:
    """Fire if one of `columns` differs from before.

    An insert, a delete and a truncate count as a change of every column. If the source did not send the old value
    (on PostgreSQL, if REPLICA IDENTITY is not FULL), it fires: an extra task is better than a lost change.
    `python -m listener check` names the tables to which this applies.
    """
    if not columns or not all(map(_is_name, columns)):
        raise TypeError(f"changed{columns!r} needs names of columns, e.g. changed('status')")
    return _Changed(columns)


def became(column: str, value: Any) -> When:
    """Fire if `column` has this value now and had another one before, or if the row is new.

    `value` is compared with what a task would receive: `numeric` and timestamps are str, arrays are lists. If the old
    value is unknown, it fires at every UPDATE of a row that has this value.
    """
    if not _is_name(column):
        raise TypeError(f"became({column!r}, …) needs the name of a column, e.g. became('status', 'closed')")
    return _Became((column,), _as_json(value))


def in_context(**values: Any) -> When:
    """Fire if the context of the transaction (`cdc_tasks.context`) has all of these values.

    Raises ContextError if a context cannot have them.
    """
    check_context(values)
    return _InContext(values)


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _as_json(value: Any) -> Any:
    """Return the value as a task gets it through JSON: lists instead of tuples."""
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return value


def _is_name(column: object) -> bool:
    return isinstance(column, str) and bool(column)
