"""A batch as stored in a block: the rows as logged, or lines, which a route may have rendered already."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter, is_, itemgetter
from typing import Final, NamedTuple

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.router import Call, Parked, Route
from listener.control.journal.file import MUTED, microseconds
from listener.control.journal.rows import as_logged, line_of
from listener.core.logged_change import LoggedChange

__all__ = ["LARGE", "Block", "block_of"]

LARGE: Final = 100  # changes in a block that is not repacked
_ENQUEUED: Final = EventType.ENQUEUED.value


class Block(NamedTuple):
    """The changes of one batch, not yet compressed: as lines, or as `rows.as_logged` returns them."""

    size: int  # changes
    lines: list[bytes]
    rows: bytes | None
    oldest: int
    newest: int
    tables: set[str]
    first_id: bytes
    first_time: int


def block_of(changes: Sequence[Change], fired: Sequence[Call | Parked]) -> Block | None:
    """Return the changes of a batch; None if there are none. `fired` are the tasks they fired."""
    kept = _of_tables(changes)
    if not kept:
        return None
    heads = _one_of_each_transaction(kept)
    times = [each.committed_at for each in heads]
    oldest, newest, first = (microseconds(each) for each in (min(times), max(times), times[0]))
    tables = {f"{schema}.{table}" for schema, table, _ in set(map(_KIND, kept))}
    lines, rows = _lines(kept, fired)
    if lines and any(each.is_muted for each in heads):
        pairs = zip(kept, lines, strict=True)
        lines = [MUTED + line if change.is_muted else line for change, line in pairs]
    return Block(len(kept), lines, rows, oldest, newest, tables, kept[0].stamp[0], first)


def _of_tables(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes without enqueued tasks, which are not changes."""
    if all(event != _ENQUEUED for _, _, event in set(map(_KIND, changes))):
        return changes
    return [each for each in changes if each.kind[2] != _ENQUEUED]


def _lines(changes: Sequence[Change], fired: Sequence[Call | Parked]) -> tuple[list[bytes], bytes | None]:
    """Return many changes as logged, few as lines, which are four times as long."""
    if len(changes) >= LARGE and (rows := as_logged(changes)) is not None:
        return [], rows
    routes = dict(zip(map(id, map(_ROUTE, fired)), map(_ROUTE, fired), strict=True)).values()
    whole = {id(route) for route in routes if _is_whole(route)}
    if len(routes) == len(whole) == 1 and _is_one_each(fired, changes):
        return list(map(_ARGUMENTS, fired)), None
    calls = (each for each in fired if id(each[0]) in whole and isinstance(each, Call)) if whole else ()
    rendered = {id(each.change): each.arguments for each in calls}
    return [rendered.get(id(change)) or line_of(change) for change in changes], None


def _is_one_each(fired: Sequence[Call | Parked], changes: Sequence[Change]) -> bool:
    """Return whether each change has fired exactly one call: the usual case, without work per row."""
    is_alike = len(fired) == len(changes) and set(map(type, fired)) == {Call}
    return is_alike and all(map(is_, map(_CHANGE, fired), changes))


def _is_whole(route: Route) -> bool:
    """Return whether its task gets the whole change."""
    return route.args is None and route.columns is None


_ROUTE: Final = itemgetter(0)  # of a Call or a parked change
_CHANGE: Final = itemgetter(1)
_ARGUMENTS: Final = itemgetter(2)
_KIND: Final = attrgetter("kind")
_TRANSACTION: Final = attrgetter("commit")


def _one_of_each_transaction(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the first change of each transaction: all of a transaction share the time, and whether they are muted."""
    if not isinstance(changes[0], LoggedChange):
        return changes
    return [next(alike) for _, alike in groupby(changes, key=_TRANSACTION)]
