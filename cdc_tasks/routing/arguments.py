"""The arguments of a fired task, as JSON: columns that a route names, or what its functions return."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import dumps

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError

__all__ = [
    "Args",
    "ColumnArgs",
    "ColumnKwargs",
    "Kwargs",
    "ValueMissingError",
    "arguments_json",
    "kwargs_json",
    "named_columns",
    "row_values",
]

Args = Callable[[Change], Sequence[Any]]
Kwargs = Callable[[Change], Mapping[str, Any]]


class ValueMissingError(CDCError):
    """The source did not send the value of a column that a route passes to its task, or that is its key."""


@dataclass(frozen=True, slots=True)
class ColumnArgs:
    """`args=["id", …]`: the values of these columns, in this order."""

    columns: tuple[str, ...]

    def __call__(self, change: Change) -> list[Any]:
        return row_values(change, self.columns) if self.columns else []

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.columns))}]"


@dataclass(frozen=True, slots=True)
class ColumnKwargs:
    """`kwargs={"order_id": "id", …}`: the column of each parameter."""

    names: tuple[str, ...]
    columns: tuple[str, ...]  # of the parameters, in their order

    def __call__(self, change: Change) -> dict[str, Any]:
        return dict(zip(self.names, row_values(change, self.columns), strict=True))

    def __repr__(self) -> str:
        return repr(dict(zip(self.names, self.columns, strict=True)))


def named_columns(args: Args | None, kwargs: Kwargs | None) -> tuple[str, ...] | None:
    """Return the named columns; None if they are unknown, because a function reads the change."""
    found: list[str] = []
    for each in (args, kwargs):
        if isinstance(each, ColumnArgs | ColumnKwargs):
            found += each.columns
        elif each is not None:
            return None
    return tuple(dict.fromkeys(found))


def arguments_json(values: object, task: str) -> bytes:
    """Return the result of `args` of the route to `task`, as JSON without the list's brackets.

    Raises TypeError if it is not a list, or if it has a value that JSON cannot represent.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"args= of the route to {task} returned {type(values).__name__}, not a list")
    return dumps(list(values)).encode()[1:-1]


def kwargs_json(values: object, task: str) -> bytes:
    """Return the result of `kwargs` as JSON, without the object's braces; raises TypeError as `arguments_json` does."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise TypeError(
            f"kwargs= of the route to {task} returned {type(values).__name__}, not a dict with names as keys"
        )
    return dumps(dict(values)).encode()[1:-1]


def row_values(change: Change, columns: tuple[str, ...]) -> list[Any]:
    """Return the values of the row after the change, or before a DELETE. Raises ValueMissingError."""
    message = json.loads(change.to_json(columns))  # only these columns are decoded
    before, after = message["before"] or {}, message["after"] or {}
    try:
        # A value that an UPDATE leaves out of the new row is unchanged, so the old row may have it.
        return [after[name] if name in after else before[name] for name in columns]
    except KeyError as error:
        raise _missing(change, error.args[0]) from None


def _missing(change: Change, column: str) -> ValueMissingError:
    table, event = f"{change.schema}.{change.table}", change.event.name
    if column in change.unavailable:
        return ValueMissingError(
            f"The source did not send {column} of {table} with this {event}.",
            hint="Read the row in the task by its key, or log whole rows.\n"
            f"  PostgreSQL: ALTER TABLE {table} REPLICA IDENTITY FULL;\n"
            "  MySQL, MariaDB: SET GLOBAL binlog_row_image = FULL;",
        )
    return ValueMissingError(
        f"{table} has no column {column}.",
        hint="Correct args=, kwargs= or key= of the route.",
        code="column_missing",
    )
