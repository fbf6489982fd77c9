"""A task's arguments as Flower, `celery inspect` and logs show them: without row data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery.utils.saferepr import saferepr

from cdc_tasks.words import counted

__all__ = ["holds_change", "redacted"]


def redacted(arguments: Sequence[Any] | Mapping[str, Any]) -> str:
    """Return a `repr` without row data: a change as its table, event and id, any other dict as its keys."""
    if isinstance(arguments, dict):
        return saferepr({name: _shown(value) for name, value in arguments.items()})
    return saferepr(tuple(_shown(value) for value in arguments))


def holds_change(arguments: Sequence[Any] | Mapping[str, Any] | None) -> bool:
    """Return whether one of a task's arguments is a change, or a list of changes."""
    values = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    return any(_is_change(each[0] if isinstance(each, list) and each else each) for each in values)


def _shown(value: Any) -> Any:
    if isinstance(value, list) and value and all(_is_change(each) for each in value):
        return f"<{counted(len(value), 'change')} of {value[0]['schema']}.{value[0]['table']}, first {value[0]['id']}>"
    if _is_change(value):
        return f"<{value['event']} of {value['schema']}.{value['table']}, {value['id']}>"
    if isinstance(value, dict):
        return f"<{', '.join(map(str, value))}>"
    return value


def _is_change(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"id", "schema", "table", "event", "before", "after"}
