"""A route's `key=`: which message group the task of a change belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.arguments import row_values
from cdc_tasks.routing.message_groups import bounded_key, text_of_values

__all__ = ["CalledKey", "ColumnKey", "Key"]

_MOST_REMEMBERED: Final = 10_000  # keys of a route
_PLAIN: Final = (str, int)
_LONGEST_NUMBER: Final = 20  # digits: the key stays short with any group's name

Key = Callable[[Change], str | None]
"""The key of a change; None: its task belongs to no group."""


@dataclass(frozen=True, slots=True)
class ColumnKey:
    """`key="id"`, `key=["tenant_id", "id"]`: rows with the same values have one key."""

    group: str
    columns: tuple[str, ...]
    is_for_many_tables: bool  # and not shared on purpose: rows of two tables are unrelated
    # Recent keys, by the columns as JSON: most rows of a busy table have a known key.
    _known: dict[bytes, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, change: Change) -> str:
        """Return the key of a change; raises ValueMissingError if the source did not send a value."""
        if self.is_for_many_tables:
            return _key(self.group, row_values(change, self.columns), change)
        try:
            row = change.row_json(self.columns)
        except CDCError:  # `to_json` says where in the log
            return _key(self.group, row_values(change, self.columns), None)
        known = self._known.get(row)
        return known or self._make(row, change)

    def _make(self, row: bytes, change: Change) -> str:
        """Return the key of a change, and remember it if it depends only on these columns of its row."""
        if len(self.columns) == 1 and (digits := row[row.rfind(b":") + 1 : -1]).isdigit():  # as most keys are
            digits_text = digits.decode()
            short = len(digits_text) <= _LONGEST_NUMBER
            key = f"{self.group}:{digits_text}" if short else bounded_key(self.group, digits_text)
            if len(self._known) < _MOST_REMEMBERED:  # when full, the key is computed again, which is cheap
                self._known[row] = key
            return key
        values = _plain_values(row)
        if values is None or len(values) != len(self.columns):
            return _key(self.group, row_values(change, self.columns), None)
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        return self._known.setdefault(row, _key(self.group, values, None))

    def __repr__(self) -> str:
        return ", ".join(self.columns)


@dataclass(frozen=True, slots=True)
class CalledKey:
    """`key=lambda change: …`: a value, a tuple or list of values, or None."""

    group: str
    function: Callable[[Change], Any]
    is_for_many_tables: bool

    def __call__(self, change: Change) -> str | None:
        """Return the key of a change; raises what the function raises."""
        value = self.function(change)
        if value is None:
            return None
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        return _key(self.group, values, change if self.is_for_many_tables else None)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _plain_values(row: bytes) -> list[Any] | None:
    """Return the values of a row in JSON; None if there are other values than texts and integers.

    `row_values` reads the others exactly: floats, integers of more than 64 bits, half of a surrogate pair.
    """
    try:
        values = list(orjson.loads(row).values())
    except ValueError:
        return None
    for value in values:
        if value.__class__ not in _PLAIN:
            return None
    return values


def _key(group: str, values: tuple[Any, ...] | list[Any], of_table: Change | None) -> str:
    text = text_of_values(tuple(values))
    return bounded_key(group, f"{of_table.schema}.{of_table.table} {text}" if of_table else text)
