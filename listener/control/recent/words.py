"""The texts for recent changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cdc_tasks.words import counted
from listener.control.recent.entries import Fate, LeftOut, Noted, NotedChange, Why

__all__ = ["Told", "context_told", "fate_told", "left_out_told", "row_told", "table_told"]


class Told(NamedTuple):
    """The outcome of one route."""

    task: str
    fired: bool  # fired, set aside or parked
    words: str  # why, or how; empty: simply fired
    task_id: str  # empty: none of its own


_DID: Final = frozenset({Fate.FIRED, Fate.COALESCED, Fate.WAITS, Fate.PARKED})


def fate_told(change: NotedChange, noted: Noted) -> Told:
    """Return the outcome of a route."""
    route, fate = noted.route, noted.fate
    is_single = fate in {Fate.FIRED, Fate.WAITS} and not route.grouping
    own_id = f"{change.id}-{route.id}" if route.id else change.id
    return Told(route.task, fate in _DID, _words(noted), own_id if is_single else "")


def _words(noted: Noted) -> str:
    """Return why the route fired nothing, or how it fired; without row values."""
    route, fate, detail = noted
    at = "" if route.place in {"", route.when} else f" ({route.place})"
    return {
        Fate.FIRED: _GROUPED.get(route.grouping, route.grouping and f"in a {route.grouping}"),
        Fate.COALESCED: f"coalesced: one task with the change {detail}",
        Fate.WAITS: "waits beside its queue: the route was paused",
        Fate.PARKED: f"parked: {detail}",
        Fate.SKIPPED: "a command made the route skip it",
        Fate.WHEN: f"when={route.when} is false{at}",
        Fate.MUTED: "its transaction mutes the change, and the route has no even_muted=True",
        Fate.EVENT: f"it is for {', '.join(route.events)}{at}",
    }[fate]


_GROUPED: Final = {"coalesce": "one task with equal ones that come soon after"}
_WHY: Final = {
    Why.RATE: "more came than are noted while the listener is busy",
    Why.STORE: "Redis was away, or nearly full",
}


def left_out_told(those: LeftOut) -> str:
    """Return what is not noted, and why."""
    if those.why is Why.ENDED:
        return "The listener ended without a goodbye: changes of its last second may not be noted."
    tables = f" of {', '.join(those.tables)}" if those.tables else ""
    count = counted(those.count or 0, "change")
    return f"{count}{tables} not noted: {_WHY[those.why]}. From {those.first} to {those.last}."


def table_told(change: NotedChange) -> str:
    """Return the table with its schema, or the name of the enqueued task."""
    return f"{change.schema}.{change.table}" if change.schema else change.table


def context_told(context: Mapping[str, Any] | None) -> list[str]:
    """Return the context: `user_id=7`, or only the name if the value may not be shown."""
    return [name if value is None else f"{name}={value}" for name, value in (context or {}).items()]


def row_told(key: Mapping[str, Any] | None) -> str:
    """Return a key: `id=7`; empty if unknown."""
    return ", ".join(f"{name}={value}" for name, value in (key or {}).items())
