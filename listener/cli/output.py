"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdc_tasks.changes import EventType
from cdc_tasks.environment import shown_context
from cdc_tasks.routing.arguments import ColumnArgs
from cdc_tasks.routing.router import PAUSE, Route
from cdc_tasks.source_lines import named, shown_place
from cdc_tasks.words import counted, described_context
from listener.core.findings import Finding, State

if TYPE_CHECKING:
    from listener.daemon.status import Status
    from listener.publish.parked import ParkedChange

__all__ = [
    "console",
    "describe_route",
    "describe_status",
    "show_findings",
    "show_parked",
    "show_routes",
    "show_status",
    "table_of",
]

_ROUTE: Final = (
    *("id", "table", "events", "task", "when", "argument", "columns", "queue", "grouping", "sending"),
    *("key", "group", "on_failure", "on_full", "even_muted"),
)
_SELDOM: Final = {  # columns, with the value that most routes have
    "key": {""},
    "group": {""},
    "on_failure": {"", "continue"},
    "on_full": {PAUSE},
    "even_muted": {""},
}
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.PROBLEM: "bold red"}


def show_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each, and below them the hints, in unwrapped lines."""
    screen = console()
    table = table_of("", "what", "found")
    for each in findings:
        colour = _COLOURS[each.state]
        table.add_row(f"[{colour}]{each.state}[/{colour}]", escape(each.what), escape(each.found))
    screen.print(table)
    for each in findings:
        if each.hint and each.state is not State.OK:
            colour = _COLOURS[each.state]
            screen.print(f"[{colour}]{escape(each.what)}[/{colour}]: {escape(each.found)}", soft_wrap=True)
            screen.print(f"{_indented(each.hint)}\n", markup=False, highlight=False, soft_wrap=True)
    problems = sum(each.state is State.PROBLEM for each in findings)
    screen.print(f"{counted(problems, 'problem')}: not ready." if problems else "Ready.")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def show_routes(routes: Iterable[Route]) -> None:
    """Print the table of routes, without the columns of `_SELDOM` that no route uses."""
    described = [describe_route(route) for route in routes]
    unused = {name for name, usual in _SELDOM.items() if all(each[name] in usual for each in described)}
    shown = [name for name in _ROUTE if name not in unused]
    table = table_of(*(name.replace("_", " ") for name in shown))
    for each in described:
        table.add_row(*(escape(each[name]) for name in shown))
    console().print(table)


def describe_route(route: Route) -> Mapping[str, str]:
    """Return a route as words."""
    return {
        "id": route.id,
        "table": f"{route.schema}.{route.table}",
        "events": ", ".join(event.name for event in EventType if event in route.events),
        "task": route.task,
        "when": "" if route.when is None else named(route.when),
        "argument": _argument(route),
        "columns": "all" if route.columns is None else ", ".join(route.columns),
        "queue": route.queue or "",
        "grouping": "coalesce" if route.coalesce else f"batch of {route.batch}" if route.batch else "",
        "sending": _sending(route),
        "key": "" if route.key is None else _called(getattr(route.key, "function", route.key)),
        "group": _group(route),
        "on_failure": "" if route.key is None else route.on_failure,
        "on_full": route.on_full,
        "even_muted": "yes" if route.even_muted else "",
        "place": shown_place(route.place),
    }


def _group(route: Route) -> str:
    """Return the name of the group that the route explicitly shares with others."""
    group = getattr(route.key, "group", route.id)
    return "" if group == route.id else group


def _sending(route: Route) -> str:
    shown = {
        "after": "" if route.countdown is None else f"{route.countdown:g} s",
        "priority": "" if route.priority is None else str(route.priority),
        "expires after": "" if route.expires is None else f"{route.expires:g} s",
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value)


def _argument(route: Route) -> str:
    if route.args is None:
        return "the change"
    shown = [] if route.kwargs is not None and route.args == ColumnArgs(()) else [_called(route.args)]
    return ", ".join([*shown, *([f"**{_called(route.kwargs)}"] if route.kwargs else [])])


def _called(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    if name is None:
        return repr(function)
    return (name.endswith("<lambda>") and named(function)) or name.rpartition(".<locals>.")[2]


def show_parked(parked: Iterable[ParkedChange]) -> None:
    """Print a line for each parked change, without its row."""
    changes = list(parked)
    contexts = {each.id: shown_context(each.change.context) for each in changes}
    has_context = any(contexts.values())
    table = table_of(
        "id", "committed at", "table", "event", "task", "error", *(["context"] if has_context else [])
    )
    for each in changes:
        change = each.change
        row = (
            each.id,
            f"{change.committed_at:%Y-%m-%d %H:%M:%S}",
            f"{change.schema}.{change.table}",
            change.event,
        )
        more = [described_context(contexts[each.id])] if has_context else []
        table.add_row(*map(escape, (*row, each.task, each.error, *more)))
    console().print(table)


def show_status(status: Status) -> None:
    """Print the status."""
    screen = console()
    table = Table(show_header=False, box=None)
    for name, value in describe_status(status).items():
        if name not in {
            "alarms",
            "alarm_codes",
            "gaps",
            "unseen",
            "paused",
            "set_aside",
            "commit_wait",
            "backfills_offered",
        }:
            table.add_row(name.replace("_", " "), "-" if value is None else escape(str(value)))
    screen.print(table)
    for alarm in status.alarms:
        screen.print(f"[bold red]{escape(alarm)}[/bold red]", soft_wrap=True)


def describe_status(status: Status) -> Mapping[str, Any]:
    """Return the status as plain values."""
    source, saved = status.source, status.saved
    return {
        "name": status.name,
        "listener": source.reader.value,
        "detail": source.detail,
        "checkpoint": saved.position,
        "acknowledged": source.acknowledged,
        "end_of_log": source.current,
        "lag_bytes": source.lag_bytes,
        "lag_seconds": status.lag_seconds,
        "retained_bytes": source.retained_bytes,
        "safe_bytes": source.safe_bytes,
        "unseen": list(source.unseen),
        "gaps": list(source.gaps),
        "backfills_offered": list(status.offers),
        "parked": saved.parked,
        "paused": None if saved.pause is None else saved.pause._asdict(),
        "set_aside": dict(saved.set_aside),
        "commit_wait": None if saved.commit_wait is None else asdict(saved.commit_wait),
        "alarms": list(status.alarms),
        "alarm_codes": list(status.alarm_codes),
    }


def console() -> Console:
    screen = Console()
    if not screen.is_terminal:
        screen.width = 1000  # a pipe or a file has no width
    return screen


def table_of(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
