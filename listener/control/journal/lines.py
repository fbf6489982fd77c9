"""Changes to the lines of a block: what a route has rendered already is not rendered again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter, is_, itemgetter
from typing import Final, NamedTuple

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.router import Call, Parked, Route
from listener.control.journal.file import MUTED, UNREADABLE, microseconds
from listener.core.logged_change import LoggedChange

__all__ = ["Block", "block_of"]

_ENQUEUED: Final = EventType.ENQUEUED.value


class Block(NamedTuple):
    """The changes of one batch, not yet compressed."""

    lines: list[bytes]
    oldest: int
    newest: int
    tables: set[str]
    first_id: bytes


def block_of(changes: Sequence[Change], fired: Sequence[Call | Parked]) -> Block | None:
    """Return the changes of a batch; None if there are none. `fired` is what they have fired."""
    kept = _of_tables(changes)
    return _block(kept, _lines(kept, fired)) if kept else None


def _of_tables(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes without enqueued tasks, which are no changes."""
    if all(event != _ENQUEUED for _, _, event in set(map(_KIND, changes))):
        return changes
    return [each for each in changes if each.kind[2] != _ENQUEUED]


def _lines(changes: Sequence[Change], fired: Sequence[Call | Parked]) -> list[bytes]:
    """Return the changes as JSON. What a route has rendered already is not rendered again."""
    routes = dict(zip(map(id, map(_ROUTE, fired)), map(_ROUTE, fired), strict=True)).values()
    whole = {id(route) for route in routes if _is_whole(route)}
    if len(routes) == len(whole) == 1 and _is_one_each(fired, changes):
        return list(map(_ARGUMENTS, fired))
    calls = (each for each in fired if id(each[0]) in whole and isinstance(each, Call)) if whole else ()
    rendered = {id(each.change): each.arguments for each in calls}
    return [rendered.get(id(change)) or _rendered(change) for change in changes]


def _is_one_each(fired: Sequence[Call | Parked], changes: Sequence[Change]) -> bool:
    """Return whether each change has fired one call: it is mostly so, and then nothing is done for each row."""
    is_alike = len(fired) == len(changes) and set(map(type, fired)) == {Call}
    return is_alike and all(map(is_, map(_CHANGE, fired), changes))


def _is_whole(route: Route) -> bool:
    """Return whether its task gets the change as it is."""
    return route.args is None and route.columns is None


def _block(changes: Sequence[Change], lines: list[bytes]) -> Block:
    heads = _one_of_each_transaction(changes)
    if any(each.is_muted for each in heads):
        pairs = zip(changes, lines, strict=True)
        lines = [MUTED + line if change.is_muted else line for change, line in pairs]
    times = [each.committed_at for each in heads]
    tables = {f"{schema}.{table}" for schema, table, _ in set(map(_KIND, changes))}
    return Block(lines, microseconds(min(times)), microseconds(max(times)), tables, changes[0].stamp[0])


_ROUTE: Final = itemgetter(0)  # of a Call, or of what is parked
_CHANGE: Final = itemgetter(1)
_ARGUMENTS: Final = itemgetter(2)
_KIND: Final = attrgetter("kind")
_TRANSACTION: Final = attrgetter("commit")


def _one_of_each_transaction(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the first change of each transaction: all of one have the same time, and are muted or not."""
    if not isinstance(changes[0], LoggedChange):
        return changes
    return [next(alike) for _, alike in groupby(changes, key=_TRANSACTION)]


def _rendered(change: Change) -> bytes:
    try:
        return change.to_json()
    except Exception:  # noqa: BLE001 - for any reason: its place is kept
        schema, table, event = change.kind
        return (
            UNREADABLE
            + json.dumps(
                {
                    "id": change.id,
                    "schema": schema,
                    "table": table,
                    "event": event,
                    "before": None,
                    "after": None,
                    "unavailable": [],
                    "position": change.position,
                    "committed_at": change.committed_at.isoformat(timespec="microseconds"),
                }
            ).encode()
        )
