"""What the commands for replays and the journal show."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final

import typer
from rich.markup import escape

from cdc_tasks.changes import Change
from cdc_tasks.command_line import print_json
from cdc_tasks.routing.router import BinlogRouter, Parked
from cdc_tasks.words import counted
from listener.cli.output import console, table_of
from listener.control.journal.file import JournalledChange
from listener.control.journal.reader import Summary
from listener.control.replays import ReplayState, chosen_history, fired_by, named_replay, replayed_routes
from listener.core.history import History, Kept, Selection, Wanted
from listener.daemon.application import router_for
from listener.daemon.asked import selection_of
from listener.daemon.settings import ListenerSettings, load
from listener.daemon.wiring import journal_reader, replay_histories, replay_store

__all__ = ["Asked", "dry_run_of", "show_all", "show_changes", "show_one", "show_summary", "watch"]

_LOOK_EVERY: Final = 0.5  # seconds
_AT_ONCE: Final = 1_000  # changes


class Asked:
    """Which changes to select."""

    def __init__(
        self, since: datetime | None, until: datetime | None, tables: list[str], rows: list[str]
    ) -> None:
        """`rows` are values of the column id, or COLUMN=VALUE."""
        self.settings = load(ListenerSettings)
        self.selection = selection_of(self.settings, since, until, tables, rows)

    def changes(self) -> Iterator[JournalledChange]:
        """Yield them, in the order of the journal."""
        found = journal_reader(self.settings).changes(self.selection)
        return (change for _, change in found if change is not None)


def dry_run_of(asked: Asked, names: list[str], *, as_json: bool) -> None:
    """Count the changes, and the tasks that they would fire."""
    routes = replayed_routes(router_for(asked.settings).routes, names)
    router, tasks, parked, count = BinlogRouter().for_replay(routes, "dry-run"), Counter[str](), 0, 0
    tasks.update({route.task: 0 for route in routes})
    history, kept = chosen_history(replay_histories(asked.settings, routes), asked.selection, accept_gap=True)
    for part in _parts(history, kept, asked.selection):
        fired = fired_by(router, part, new_ids=None)
        count += len(part)
        parked += sum(isinstance(each, Parked) for each in fired)
        tasks.update(each.route.task for each in fired if not isinstance(each, Parked))
    gaps = [
        {"since": each.since.isoformat(), "until": each.until.isoformat()}
        for each in kept.missing(asked.selection)
    ]
    if as_json:
        shown = {"changes": count, "tasks": dict(tasks), "parked": parked, "gaps": gaps}
        print_json({**shown, "source": history.kind})
        return
    typer.echo(f"{counted(count, 'change')} of {history.name} would fire:")
    for task, number in tasks.items():
        typer.echo(f"  {task}: {counted(number, 'task')}")
    if parked:
        typer.echo(f"  {counted(parked, 'change')} would be parked")
    for gap in gaps:
        typer.echo(f"Not in {history.name}: {gap['since']} to {gap['until']}")


def _parts(history: History, kept: Kept, selection: Selection) -> Iterator[Sequence[Change]]:
    """Yield the selected changes of the history."""
    wanted = Wanted(kept.id, selection, kept.end, accepts_gap=True)
    with closing(history):
        place, is_end = "", False
        while not is_end:
            changes, place, is_end = history.read(wanted, place, _AT_ONCE)
            yield changes


def show_changes(asked: Asked, limit: int, *, as_json: bool) -> None:
    """Show the last changes, the oldest first."""
    found = deque(asked.changes(), maxlen=limit)
    if as_json:
        print_json([each.to_message(None) for each in found])
        return
    table = table_of("committed at", "table", "event", "what", "position")
    for each in found:
        at = f"{each.committed_at.astimezone():%Y-%m-%d %H:%M:%S.%f}"
        cells = at, f"{each.schema}.{each.table}", each.event.value, _difference(each), each.position
        table.add_row(*map(escape, cells))
    console().print(table)


def _difference(change: JournalledChange) -> str:
    """Return the columns that changed, old and new; of an inserted or deleted row, all columns."""
    before, after = change.before or {}, change.after or {}
    if change.is_unreadable:
        return "the row could not be read"
    if change.before is None or change.after is None:
        return ", ".join(f"{name}={value!r}" for name, value in (after or before).items())
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    told = (
        f"{name}: {before[name]!r} → {value!r}" if name in before else f"{name}={value!r}"
        for name, value in changed.items()
    )
    return ", ".join(told)


def show_summary(*, as_json: bool) -> None:
    """Show since when the journal has changes, how many, and what is missing."""
    summary = journal_reader(load(ListenerSettings)).summary()
    shown = _summarised(summary)
    if as_json:
        print_json(shown)
        return
    typer.echo(f"{counted(shown['changes'], 'change')} since {shown['since']}, in {summary.bytes:,} bytes")
    for gap in shown["gaps"]:
        typer.echo(f"Missing: {gap['since']} to {gap['until']}")


def _summarised(summary: Summary) -> dict[str, Any]:
    return {
        "since": summary.since.isoformat(),
        "changes": summary.end - summary.first,
        "bytes": summary.bytes,
        "gaps": [{"since": each.since.isoformat(), "until": each.until.isoformat()} for each in summary.gaps],
    }


def show_all(*, as_json: bool) -> None:
    """Show a line for each replay."""
    found = [_described(each) for each in replay_store(load(ListenerSettings)).read()]
    if as_json:
        print_json(found)
        return
    table = table_of("id", "since", "until", "state", "changes", "tasks", "asked for by")
    for each in found:
        cells = (
            each["id"],
            each["since"],
            each["until"],
            each["state"],
            f"{each['changes']:,}",
            str(each["tasks"]),
        )
        table.add_row(*map(escape, (*cells, f"{each['who']}, {each['at']}")))
    console().print(table)


def show_one(name: str, *, as_json: bool) -> None:
    """Show everything known about one."""
    shown = _described(named_replay(replay_store(load(ListenerSettings)).read(), name))
    if as_json:
        print_json(shown)
        return
    for title, value in shown.items():
        if value not in (None, []):
            console().print(f"{title}: {escape(str(value))}", highlight=False, soft_wrap=True)


def watch(name: str) -> None:
    """Show the progress until it has ended; exit with status 1 if it did not complete."""
    store = replay_store(load(ListenerSettings))
    with console().status("") as line:
        while not (state := named_replay(store.read(), name)).is_over:
            shown = _described(state)
            line.update(_told(shown))
            time.sleep(_LOOK_EVERY)
    shown = _described(state)
    typer.echo(_told(shown) + (f" {shown['error']}" if shown["error"] else ""))
    raise typer.Exit(0 if shown["state"] == "done" else 1)


def _told(shown: Mapping[str, Any]) -> str:
    return f"{shown['state']}: {counted(shown['changes'], 'change')}, {counted(shown['tasks'], 'task')}"


def _described(each: ReplayState) -> dict[str, Any]:
    replay, progress = each.replay, each.progress
    return {
        "id": replay.id,
        "since": replay.since,
        "until": replay.until,
        "tables": list(replay.tables),
        "row": [f"{name}={value}" for name, value in replay.row],
        "routes": list(replay.routes),
        "source": replay.source,
        "new_ids": replay.new_ids,
        "rate": replay.rate,
        "state": each.state,
        "changes": progress.changes,
        "tasks": progress.tasks,
        "parked": progress.parked,
        "who": replay.who,
        "at": replay.at,
        "started_at": progress.started_at,
        "updated_at": progress.updated_at,
        "error": replay.error,
        "code": replay.code,
        "hint": replay.hint,
    }
