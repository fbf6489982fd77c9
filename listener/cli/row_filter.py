"""`--where` of `watch`: conditions on the columns of a row, evaluated here and not in the database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final

from cdc_tasks.changes import Change, EventType
from cdc_tasks.errors import CDCError

__all__ = ["Condition", "RowFilterError", "parse_condition", "passes"]

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": le, ">=": ge, "!=": ne, "<>": ne, "=": eq, "<": lt, ">": gt,
}  # fmt: skip
_CONDITION: Final = re.compile(r'\s*(?:"([^"]+)"|([^\s"=!<>]+))\s*(<=|>=|!=|<>|=|<|>)\s*(.*?)\s*', re.DOTALL)


class RowFilterError(CDCError):
    """A condition of --where cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One comparison of a column with a value."""

    column: str
    operator: str
    value: Any  # parsed as JSON; a string if it is not JSON

    def is_true(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row fulfils it; False if the row lacks the column. NULL equals no other value."""
        if self.column not in row:
            return False
        found, wanted = row[self.column], self.value
        if found is None or wanted is None:
            return self.operator in {"=", "!=", "<>"} and _COMPARE[self.operator](found, wanted)
        return _COMPARE[self.operator](*_comparable(found, wanted))


def _comparable(found: Any, wanted: Any) -> tuple[Any, Any]:
    """Return both as numbers if possible, even if a `numeric` is a string; otherwise as strings."""
    numbers = _number(found), _number(wanted)
    return numbers if None not in numbers and not isinstance(wanted, str) else (_text(found), _text(wanted))


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return None if number.is_nan() else number


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def parse_condition(text: str) -> Condition:
    """Parse `COLUMN=VALUE`, or with another of = != < <= > >=. Raise RowFilterError."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise RowFilterError(
            f"--where {text!r} cannot be read.",
            hint="Write --where COLUMN=VALUE, or with one of != < <= > >=; quoted for the shell. Several --where have "
            "all to be true.",
        )
    quoted, plain, operator, value = found.groups()
    return Condition(column=quoted or plain, operator=operator, value=_value(value))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def passes(change: Change, conditions: Iterable[Condition]) -> bool:
    """Return whether the row after the change, or the row before it, fulfils all conditions.

    A truncate concerns every row. Raises what reading a row raises.
    """
    wanted = list(conditions)
    if not wanted or change.event is EventType.TRUNCATE:
        return True
    rows = (row for row in (change.after, change.before) if row is not None)
    return any(all(each.is_true(row) for each in wanted) for row in rows)
