"""Recent changes, what they fired or why not, with their values from the journal if there is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, explain
from listener.control.journal.file import JournalledChange
from listener.control.recent.entries import LeftOut, NotedChange
from listener.control.recent.reader import Page, Place, Sought
from listener.control.recent.words import Told, context_told, fate_told, left_out_told, row_told, table_told
from listener.core.history import Selection
from listener.daemon.database_url import home_schema
from listener.daemon.wiring import journal_reader, recent_reader

if TYPE_CHECKING:
    from starlette.requests import Request

    from cdc_tasks.routing.router import BinlogRouter
    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings

__all__ = ["ChangePages", "Fate", "fates_of"]

_SHOWN: Final = 100
_LOOKED_AT: Final = 20_000  # changes at the end of the journal, if nothing is selected
_LONGEST_VALUE: Final = 200  # characters
_LONGEST_LOOK: Final = 1.0  # seconds for values from the journal
_ASKED: Final = ("table", "event", "row", "who", "since", "until")
_FOR_SOME: Final = ("row", "who")  # with these, someone who may not see rows could guess them
_EVENTS: Final = tuple(each.value for each in EventType if each not in {EventType.ALL, EventType.READ})


class Fate(NamedTuple):
    """The outcome of one route for a change."""

    task: str
    fires: bool
    why: str


class _Line(NamedTuple):
    """A change of the journal."""

    change: JournalledChange
    difference: Sequence[tuple[str, str, str]]  # column, before, after
    fates: Sequence[Fate]


class _RecentLine(NamedTuple):
    """A recent change, or changes that are not noted."""

    left_out: str  # empty: it is a change
    change: NotedChange | None
    table: str
    row: str  # empty: unknown, or not for this viewer
    row_query: str  # finds all changes of the row
    context: Sequence[tuple[str, str]]  # a value of it, and the query that finds all with it
    difference: Sequence[tuple[str, str, str]]  # from the journal
    columns: Sequence[str]  # that changed, if there are no values
    fates: Sequence[Told]


class ChangePages:
    """Reads recent changes, and the journal, for the page of changes."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts

    def shown(self, request: Request, *, may_see: bool) -> Mapping[str, Any]:
        """Return the values for the page. Raises CDCError."""
        asked = {name: request.query_params.get(name, "").strip() for name in _ASKED}
        if not may_see:
            asked.update(dict.fromkeys(_FOR_SOME, ""))
        has_journal = self._settings.cdc_journal is not None
        common = {"asked": asked, "may_see": may_see, "has_journal": has_journal, "events": _EVENTS}
        if has_journal and (
            request.query_params.get("in") == "journal" or not self._settings.cdc_recent_size
        ):
            lines = [_line(each, self._facts.router, may_see=may_see) for each in self._found(asked)]
            return {**common, "is_journal": True, "lines": lines}
        return {**common, "is_journal": False, **self._recent(request, asked, may_see=may_see)}

    # --- Recent changes ---------------------------------------------------------------------------------------

    def _recent(self, request: Request, asked: Mapping[str, str], *, may_see: bool) -> Mapping[str, Any]:
        before = Place.parse(request.query_params.get("before", ""))
        sought = self._sought(asked)
        with closing(recent_reader(self._settings)) as reader:
            page = reader.page(sought, before=before, limit=_SHOWN)
            kept = reader.sizes().changes
        values = self._values(page, sought) if may_see else {}
        lines = [_recent_line(each, values, may_see=may_see) for _, each in page.entries]
        is_newest = before is None and not any(asked.values())
        return {
            "lines": lines,
            "page": page,
            "kept": kept,
            "is_on": bool(self._settings.cdc_recent_size),
            "live": is_newest,
            "is_newest": is_newest,
            "older": "" if page.more is None else _query(asked, before=str(page.more)),
            "newest": _query(asked) if before is not None else "",
            "in_journal": _query(asked, **{"in": "journal"}),
        }

    def _sought(self, asked: Mapping[str, str]) -> Sought:
        return Sought(
            table=self._table(asked),
            event=asked["event"],
            row=tuple(map(_column_and_value, filter(None, asked["row"].split("&")))),
            who=_who(asked["who"]) if asked["who"] else None,
            since=_time(asked["since"]),
            until=_time(asked["until"]),
        )

    def _table(self, asked: Mapping[str, str]) -> tuple[str, str] | None:
        """Return schema and name; an enqueued task has no schema."""
        if not asked["table"]:
            return None
        if asked["event"] == EventType.ENQUEUED.value:
            return "", asked["table"]
        schema, _, table = self._with_schema(asked["table"]).partition(".")
        return schema, table

    def _with_schema(self, table: str) -> str:
        return (
            table
            if "." in table
            else f"{home_schema(self._settings.database_url.get_secret_value())}.{table}"
        )

    def _values(self, page: Page, sought: Sought) -> Mapping[str, JournalledChange]:
        """Return the page's changes from the journal, by id: as many as are found quickly."""
        changes = [each for _, each in page.entries if isinstance(each, NotedChange)]
        if self._settings.cdc_journal is None or not changes:
            return {}
        times = [each.committed_at for each in changes]
        tables = {table_told(each) for each in changes}
        selection = Selection(
            since=min(times),
            until=max(times) + timedelta(microseconds=1),
            tables=tuple(tables),
            row=sought.row,
        )
        wanted, found, until = (
            {each.id for each in changes},
            dict[str, JournalledChange](),
            monotonic() + _LONGEST_LOOK,
        )
        try:
            for _, change in journal_reader(self._settings).changes(selection):
                if change is not None and change.id in wanted:
                    found[change.id] = change
                if len(found) == len(wanted) or monotonic() > until:
                    break
        except CDCError:  # the page is correct without them
            return {}
        return found

    # --- The journal ------------------------------------------------------------------------------------------

    def _found(self, asked: Mapping[str, str]) -> list[JournalledChange]:
        """Return the last changes, the newest first. Raises CDCError."""
        reader = journal_reader(self._settings)
        summary = reader.summary()
        start = 0 if asked["row"] or asked["since"] else max(summary.first, summary.end - _LOOKED_AT)
        found = reader.changes(self._selection(asked), start=start)
        wanted = (
            change for _, change in found if change is not None and asked["event"] in {"", change.event.value}
        )
        return list(deque(wanted, maxlen=_SHOWN))[::-1]

    def _selection(self, asked: Mapping[str, str]) -> Selection:
        return Selection(
            since=_time(asked["since"]),
            until=_time(asked["until"]),
            tables=(self._with_schema(asked["table"]),) if asked["table"] else (),
            row=tuple(map(_column_and_value, filter(None, asked["row"].split("&")))),
        )


def _query(asked: Mapping[str, str], **more: str) -> str:
    return f"?{urlencode({name: value for name, value in {**asked, **more}.items() if value})}"


def _recent_line(
    entry: NotedChange | LeftOut, values: Mapping[str, JournalledChange], *, may_see: bool
) -> _RecentLine:
    if isinstance(entry, LeftOut):
        return _RecentLine(left_out_told(entry), None, "", "", "", (), (), (), ())
    kept = values.get(entry.id)
    table, row = table_told(entry), row_told(entry.key) if may_see else ""
    pairs = [f"{name}={_text(value)}" for name, value in (entry.key or {}).items()]
    context = entry.context if may_see else None
    said = context_told(context)
    return _RecentLine(
        left_out="",
        change=entry,
        table=table,
        row=row,
        row_query=f"?{urlencode({'table': table, 'row': '&'.join(pairs)})}" if row else "",
        context=[(each, f"?{urlencode({'who': each})}" if "=" in each else "") for each in said],
        difference=list(_difference(kept)) if kept is not None else [],
        columns=entry.columns or () if kept is None else (),
        fates=[fate_told(entry, each) for each in entry.routes],
    )


def _who(text: str) -> tuple[str, str]:
    """Return a name of a context and its value; without a name, any."""
    name, equals, value = text.partition("=")
    return (name.strip(), value.strip()) if equals else ("", text)


def _column_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name.strip(), value.strip()) if equals else ("id", text)


def _time(text: str) -> datetime | None:
    """Parse a time: minutes ago, or ISO 8601. Raise CDCError."""
    if not text:
        return None
    if text.isdecimal():
        return datetime.now(UTC) - timedelta(minutes=int(text))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise CDCError(
            f"{text!r} is not a time.", hint="Write minutes, e.g. 30, or 2026-11-26T14:00.", code="not_a_time"
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
    """Yield the outcome of each route for the change's table, as the routes are now."""
    if change.is_unreadable:
        return
    for verdict in explain(router, change):
        if verdict.outcome is not Outcome.TABLE:
            why = f"{verdict.reason} ({verdict.place})" if verdict.place else verdict.reason
            yield Fate(verdict.route.task, verdict.outcome is Outcome.FIRES, why)
