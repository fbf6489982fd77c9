"""What `changes` shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.text import Text

from cdc_tasks.changes import EventType
from cdc_tasks.command_line import print_json
from cdc_tasks.words import counted
from listener.cli.output import console
from listener.cli.verdicts import local_time, printable
from listener.control.recent.entries import LeftOut, NotedChange
from listener.control.recent.reader import Page, Sought
from listener.control.recent.words import context_told, fate_told, left_out_told, row_told, table_told
from listener.daemon.database_url import home_schema
from listener.daemon.settings import ListenerSettings, load
from listener.daemon.wiring import recent_reader

__all__ = ["Asked", "described", "show_recent"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which changes to show."""

    table: str | None
    rows: list[str]
    event: str
    who: str | None
    change_id: str | None
    since: datetime | None
    until: datetime | None

    def sought(self, settings: ListenerSettings) -> Sought:
        """Return it in the reader's form."""
        return Sought(
            table=None if self.table is None else self._named(self.table, settings),
            event=self.event,
            row=tuple(_named_value(each, "id") for each in self.rows),
            who=None if self.who is None else _named_value(self.who, ""),
            since=self.since,
            until=self.until,
            ids=frozenset() if self.change_id is None else frozenset({self.change_id}),
        )

    def _named(self, table: str, settings: ListenerSettings) -> tuple[str, str]:
        if self.event == EventType.ENQUEUED.value:  # the name of a task
            return "", table
        schema, dot, name = table.partition(".")
        return (schema, name) if dot else (home_schema(settings.database_url.get_secret_value()), table)


def _named_value(text: str, name: str) -> tuple[str, str]:
    given, equals, value = text.partition("=")
    return (given, value) if equals else (name, text)


def show_recent(asked: Asked, limit: int, *, as_json: bool) -> None:
    """Show the last changes, the oldest first."""
    settings = load(ListenerSettings)
    sought = asked.sought(settings)
    with closing(recent_reader(settings)) as reader:
        page = reader.page(sought, limit=limit)
    if as_json:
        print_json(_as_object(page))
        return
    screen = console()
    for _, entry in reversed(page.entries):
        for line in _lines(entry):
            screen.print(line, soft_wrap=True)
    for note in _notes(page, sought, settings):
        screen.print(Text(note), soft_wrap=True)


def _as_object(page: Page) -> dict[str, Any]:
    entries = [entry for _, entry in reversed(page.entries)]
    return {
        "changes": [described(each) for each in entries if isinstance(each, NotedChange)],
        "not_noted": [_left_out(each) for each in entries if isinstance(each, LeftOut)],
        "not_noted_changes": page.left_out,
        "unreadable_blocks": page.unreadable,
        "is_complete": page.more is None,
    }


def described(change: NotedChange) -> Mapping[str, Any]:
    """Return a change for JSON."""
    return {
        "id": change.id,
        "schema": change.schema,
        "table": change.table,
        "event": change.event.value,
        "position": change.position,
        "committed_at": change.committed_at.isoformat(timespec="microseconds"),
        "context": change.context,
        "key": change.key,
        "old_key": change.old_key,
        "columns": change.columns,
        "routes": [
            {
                "id": each.route.id,
                "task": each.route.task,
                "outcome": each.fate.value,
                "reason": fate_told(change, each).words,
                "place": each.route.place,
                "task_id": fate_told(change, each).task_id or None,
            }
            for each in change.routes
        ],
    }


def _left_out(those: LeftOut) -> Mapping[str, Any]:
    return {
        "why": those.why.value,
        "count": those.count,
        "first": those.first,
        "last": those.last,
        "since": None if those.since is None else those.since.isoformat(),
        "until": None if those.until is None else those.until.isoformat(),
        "tables": those.tables,
    }


def _lines(entry: NotedChange | LeftOut) -> Iterator[Text]:
    if isinstance(entry, LeftOut):
        yield Text(printable(left_out_told(entry)), "yellow")
        return
    head = Text(local_time(entry.committed_at), "dim").append(f" {entry.event.value} ", "cyan")
    head.append(printable(table_told(entry)), "bold").append(f" {printable(row_told(entry.key))}")
    if entry.columns:
        head.append(printable(f" changed: {', '.join(entry.columns)}"), "dim")
    if entry.context:
        head.append(printable(f"  by {', '.join(context_told(entry.context))}"), "dim")
    yield head.append(f"  {entry.position}", "dim")
    for each in entry.routes:
        told = fate_told(entry, each)
        line = Text("  ").append(*(("fired", "bold green") if told.fired else ("not", "dim")))
        yield line.append(printable(f" {told.task}{': ' if told.words else ''}{told.words}"))
    if not entry.routes:
        yield Text("  no route names this table", "dim")


def _notes(page: Page, sought: Sought, settings: ListenerSettings) -> Iterator[str]:
    if not page.entries:
        yield "No changes found."
        if sought == Sought() and not settings.cdc_recent_size:
            yield "CDC_RECENT_SIZE is 0, so no changes are noted."
    if page.left_out and sought.is_narrow:
        yield f"{counted(page.left_out, 'change')} of that time are not noted and may be missing here."
    if page.unreadable:
        yield f"{counted(page.unreadable, 'part')} of the record cannot be read: damaged, or from another version."
