"""A route's `key=`: which message group the task of a change belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdc_tasks.changes import Change
from cdc_tasks.routing.arguments import row_values
from cdc_tasks.routing.message_groups import bounded_key, text_of_values

__all__ = ["CalledKey", "ColumnKey", "Key"]

Key = Callable[[Change], str | None]
"""A change's key; None: its task belongs to no group."""


@dataclass(frozen=True, slots=True)
class ColumnKey:
    """`key="id"`, `key=["tenant_id", "id"]`: rows with the same values have one key."""

    group: str
    columns: tuple[str, ...]
    is_for_many_tables: (
        bool  # and not shared on purpose: rows of two tables have nothing to do with each other
    )

    def __call__(self, change: Change) -> str:
        """Return the key of a change; raises ValueMissingError if the source did not send a value."""
        return _key(self.group, row_values(change, self.columns), change if self.is_for_many_tables else None)

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


def _key(group: str, values: tuple[Any, ...] | list[Any], of_table: Change | None) -> str:
    text = text_of_values(tuple(values))
    return bounded_key(group, f"{of_table.schema}.{of_table.table} {text}" if of_table else text)
