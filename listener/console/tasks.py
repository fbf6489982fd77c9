"""One task: where it is, and which change it came from; and the field that finds a task, a row or a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, explain
from listener.cli.found_change import find_in_histories
from listener.cli.parked_changes import NotParkedError
from listener.console.changes import Fate

if TYPE_CHECKING:
    from cdc_tasks.changes import Change
    from cdc_tasks.dead_letters.store import DeadLetter
    from cdc_tasks.routing.router import BinlogRouter, Route
    from listener.cli.found_change import Found
    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings
    from listener.publish.parked import ParkedChange

__all__ = ["TaskPages", "place_of", "place_of_id"]

_ROUTE_ID: Final = re.compile(r"-([0-9a-f]{8})$")  # behind the change's id, in that of a task
_KEY_COLUMNS: Final = ("id", "uuid", "number")  # by which a row is found again on the page of changes


class TaskPages:
    """Finds what is known of a task: among what failed, among what is parked, and in the history of changes."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts

    def shown(self, task_id: str) -> Mapping[str, Any]:
        """Return the values for the page. What cannot be read leaves its error in its place."""
        parked, letter = self._parked(task_id), _letter(task_id)
        found, looked = (None, "") if parked is not None else self._found(task_id)
        change = parked.change if parked is not None else None if found is None else found.change
        route = _route_of(task_id, self._facts.router)
        return {
            "id": task_id,
            "letter": letter,
            "parked": parked,
            "route": route,
            "task": parked.task if parked else letter.task if letter else route.task if route else None,
            "change": change,
            "where": found.where if found is not None else None,
            "looked": looked,
            "fates": [] if change is None else list(_fates(change, self._facts.router)),
            "row": None if change is None else _page_of_row(change),
        }

    def _parked(self, task_id: str) -> ParkedChange | None:
        try:
            return self._facts.parked_change(task_id)
        except NotParkedError:
            return None

    def _found(self, task_id: str) -> tuple[Found | None, str]:
        try:
            return find_in_histories(self._settings, self._facts.router, task_id)
        except CDCError as error:
            return None, f"{error.message} {error.hint or ''}".strip()


def _letter(task_id: str) -> DeadLetter | None:
    try:
        return dead_letters.get(task_id)
    except dead_letters.UnknownLetterError:
        return None


def _route_of(task_id: str, router: BinlogRouter) -> Route | None:
    found = _ROUTE_ID.search(task_id)
    return next((each for each in router.routes if found and each.id == found[1]), None)


def _fates(change: Change, router: BinlogRouter) -> Iterator[Fate]:
    for verdict in explain(router, change):
        if verdict.outcome is not Outcome.TABLE:
            why = f"{verdict.reason} ({verdict.place})" if verdict.place else verdict.reason
            yield Fate(verdict.route.task, verdict.outcome is Outcome.FIRES, why)


def _page_of_row(change: Any) -> str | None:
    """Return the page with all that happened to the row; None if no column says which one it is."""
    name = next((each for each in _KEY_COLUMNS if change.row.get(each) is not None), None)
    if name is None:
        return None
    return _changes(f"{change.schema}.{change.table}", f"{name}={change.row[name]}")


def place_of(words: str, facts: Facts) -> str:
    """Return the page for what a person looks for: the id of a task or change, a table, or a row. Raises CDCError."""
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
