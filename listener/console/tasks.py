"""One task: where it is, and the change that fired it; and the search for a task, a row or a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, explain
from listener.cli.found_change import find_in_histories
from listener.cli.parked_changes import NotParkedError
from listener.control.recent.entries import NotedChange
from listener.control.recent.reader import Sought
from listener.control.recent.words import Told, fate_told, table_told
from listener.daemon.wiring import recent_reader

if TYPE_CHECKING:
    from cdc_tasks.changes import Change
    from cdc_tasks.dead_letters.store import DeadLetter
    from cdc_tasks.routing.router import BinlogRouter, Route
    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings
    from listener.publish.parked import ParkedChange

__all__ = ["TaskPages", "place_of", "place_of_id"]

_ROUTE_ID: Final = re.compile(r"-([0-9a-f]{8})$")  # after the change's id, in a task's id
_KEY_COLUMNS: Final = ("id",)  # to find a row again if its key is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """The change that fired a task."""

    event: str
    table: str
    committed_at: datetime
    position: str
    where: str  # it was found
    row: str | None  # the page with all that happened to the row
    fates: Sequence[Told]


class TaskPages:
    """Finds a task: among the failed ones, the parked ones, and in the history of changes."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts

    def shown(self, task_id: str) -> Mapping[str, Any]:
        """Return the values for the page. A part that cannot be read shows its error."""
        parked, letter = self._parked(task_id), _letter(task_id)
        route = _route_of(task_id, self._facts.router)
        origin, looked = (
            (_of_change(parked.change, "what is parked", ()), "") if parked else self._origin(task_id)
        )
        return {
            "id": task_id,
            "letter": letter,
            "parked": parked,
            "route": route,
            "task": parked.task if parked else letter.task if letter else route.task if route else None,
            "origin": origin,
            "looked": looked,
        }

    def _parked(self, task_id: str) -> ParkedChange | None:
        try:
            return self._facts.parked_change(task_id)
        except NotParkedError:
            return None

    def _origin(self, task_id: str) -> tuple[_Origin | None, str]:
        """Return the change from the recent ones, or else the journal or the binlog; and where it was not found."""
        try:
            with closing(recent_reader(self._settings)) as reader:
                sought = Sought(ids=frozenset({task_id, _ROUTE_ID.sub("", task_id)}))
                changes = [each for _, each in reader.page(sought, limit=1).entries]
            for change in changes:
                if isinstance(change, NotedChange):
                    return _of_noted(change), ""
            found, looked = find_in_histories(self._settings, self._facts.router, task_id)
        except CDCError as error:
            return None, f"{error.message} {error.hint or ''}".strip()
        if found is None:
            return None, f"It is not among recent changes. {looked}"
        return _of_change(found.change, found.where, tuple(_fates(found.change, self._facts.router))), ""


def _of_noted(change: NotedChange) -> _Origin:
    return _Origin(
        event=change.event.value,
        table=table_told(change),
        committed_at=change.committed_at,
        position=change.position,
        where="recent changes",
        row=_page_of_row(table_told(change), change.key or {}, tuple(change.key or {})),
        fates=tuple(fate_told(change, each) for each in change.routes),
    )


def _of_change(change: Change, where: str, fates: tuple[Told, ...]) -> _Origin:
    table = f"{change.schema}.{change.table}" if change.schema else change.table
    return _Origin(
        event=change.event.value,
        table=table,
        committed_at=change.committed_at,
        position=change.position,
        where=where,
        row=_page_of_row(table, change.row, _KEY_COLUMNS),
        fates=fates,
    )


def _letter(task_id: str) -> DeadLetter | None:
    try:
        return dead_letters.get(task_id)
    except dead_letters.UnknownLetterError:
        return None


def _route_of(task_id: str, router: BinlogRouter) -> Route | None:
    found = _ROUTE_ID.search(task_id)
    return next((each for each in router.routes if found and each.id == found[1]), None)


def _fates(change: Change, router: BinlogRouter) -> Iterator[Told]:
    """Yield the outcomes of the change with the current routes."""
    for verdict in explain(router, change):
        if verdict.outcome is not Outcome.TABLE:
            why = f"{verdict.reason} ({verdict.place})" if verdict.place else verdict.reason
            yield Told(verdict.route.task, verdict.outcome is Outcome.FIRES, why, "")


def _page_of_row(table: str, row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    """Return the page with all that happened to the row; None if no column says which one it is."""
    pairs = [f"{name}={row[name]}" for name in columns if row.get(name) is not None]
    return _changes(table, "&".join(pairs)) if pairs else None


def place_of(words: str, facts: Facts) -> str:
    """Return the page for a search: the id of a task or change, a table, or a row. Raise CDCError."""
    table, _, row = words.replace("#", " ").partition(" ")
    tables = {name for each in facts.router.routes for name in (each.table, f"{each.schema}.{each.table}")}
    if row.strip() or table in tables:
        return _changes(table, row.strip())
    if words.isdecimal() or "=" in words:
        return _changes("", words)
    return place_of_id(words)


def place_of_id(words: str) -> str:
    """Return the page of the task or change with this id."""
    return f"/tasks/{quote(words, safe='')}" if words else "/"


def _changes(table: str, row: str) -> str:
    asked = {name: value for name, value in (("table", table), ("row", row)) if value}
    return f"/changes?{urlencode(asked)}"
