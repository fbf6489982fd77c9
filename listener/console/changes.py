"""What came last, and why a change did or did not fire: the journal's changes beside the routes as they are now."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, explain
from listener.control.journal.file import JournalledChange
from listener.core.history import Selection
from listener.daemon.database_url import home_schema
from listener.daemon.wiring import journal_reader

if TYPE_CHECKING:
    from starlette.requests import Request

    from cdc_tasks.routing.router import BinlogRouter
    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings

__all__ = ["ChangePages", "Fate", "fates_of"]

_SHOWN: Final = 100
_LOOKED_AT: Final = 20_000  # changes at the end of the journal, where nothing is asked for
_LONGEST_VALUE: Final = 200  # characters


class Fate(NamedTuple):
    """What one route makes of a change."""

    task: str
    fires: bool
    why: str


class _Line(NamedTuple):
    change: JournalledChange
    difference: Sequence[tuple[str, str, str]]  # column, before, after
    fates: Sequence[Fate]


class ChangePages:
    """Reads the journal for the page of changes."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts

    def shown(self, request: Request, *, may_see: bool) -> Mapping[str, Any]:
        """Return the values for the page; without a journal, what to do about that."""
        asked = {
            name: request.query_params.get(name, "").strip() for name in ("table", "row", "since", "until")
        }
        if self._settings.cdc_journal is None:
            return {"asked": asked, "has_journal": False}
        lines = [_line(each, self._facts.router, may_see=may_see) for each in self._found(asked)]
        return {"asked": asked, "has_journal": True, "lines": lines, "may_see": may_see, "shown": _SHOWN}

    def _found(self, asked: Mapping[str, str]) -> list[JournalledChange]:
        """Return the last changes, the newest first. Raises CDCError."""
        reader = journal_reader(self._settings)
        summary = reader.summary()
        start = 0 if asked["row"] or asked["since"] else max(summary.first, summary.end - _LOOKED_AT)
        found = reader.changes(self._selection(asked), start=start)
        return list(deque((change for _, change in found if change is not None), maxlen=_SHOWN))[::-1]

    def _selection(self, asked: Mapping[str, str]) -> Selection:
        table = asked["table"]
        if table and "." not in table:
            table = f"{home_schema(self._settings.database_url.get_secret_value())}.{table}"
        return Selection(
            since=_time(asked["since"]),
            until=_time(asked["until"]),
            tables=(table,) if table else (),
            row=(_column_and_value(asked["row"]),) if asked["row"] else (),
        )


def _column_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name.strip(), value.strip()) if equals else ("id", text)


def _time(text: str) -> datetime | None:
    """Return the time that a person wrote: minutes ago, or ISO 8601. Raise CDCError."""
    if not text:
        return None
    if text.isdecimal():
        return datetime.now(UTC) - timedelta(minutes=int(text))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise CDCError(
            f"{text!r} is no time.", hint="Write minutes, e.g. 30, or 2026-11-26T14:00.", code="not_a_time"
        ) from None


def _line(change: JournalledChange, router: BinlogRouter, *, may_see: bool) -> _Line:
    return _Line(change, list(_difference(change)) if may_see else [], list(fates_of(change, router)))


def _difference(change: JournalledChange) -> Iterator[tuple[str, str, str]]:
    before, after = change.before or {}, change.after or {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if change.before is None or change.after is None or old != new:
            yield name, _text(old) if name in before else "", _text(new) if name in after else ""


def _text(value: Any) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def fates_of(change: JournalledChange, router: BinlogRouter) -> Iterator[Fate]:
    """Yield what each route that names the change's table makes of it, as the routes are now."""
    if change.is_unreadable:
        return
    for verdict in explain(router, change):
        if verdict.outcome is not Outcome.TABLE:
            why = f"{verdict.reason} ({verdict.place})" if verdict.place else verdict.reason
            yield Fate(verdict.route.task, verdict.outcome is Outcome.FIRES, why)
