"""What the backfill commands show: a plan, the progress, and a progress bar with --watch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
)

from cdc_tasks.command_line import print_json
from cdc_tasks.words import counted
from listener.cli.output import console, table_of
from listener.control.backfills import BackfillState, BackfillStore, chosen_routes
from listener.control.commands import CommandRefusedError
from listener.core.backfill import TablePlan
from listener.daemon.asked import with_schema
from listener.daemon.load_routes import load_router
from listener.daemon.settings import ListenerSettings, load
from listener.daemon.wiring import backfill_store, count_backfill, plan_backfill

__all__ = ["Planned", "show_all", "show_one", "watch"]

_LOOK_EVERY: Final = 0.5  # seconds


class Planned:
    """A requested backfill that has not been sent to a listener yet."""

    def __init__(self, table: str, where: str | None, names: list[str], chunk: int) -> None:
        """`names` are tasks or route ids. Raise CDCError if the backfill is not possible."""
        self._settings = load(ListenerSettings)
        self.schema, self.table = with_schema(self._settings, table)
        self._where, self._chunk = where, chunk
        self.plan = plan_backfill(self._settings, self.schema, self.table, where, chunk)
        router = load_router(self._settings.cdc_routes, self._settings.source_url)
        self._tasks = [each.task for each in chosen_routes(router.routes, self.schema, self.table, names)]

    def show(self, *, as_json: bool) -> None:
        """Count the rows, and show the plan."""
        rows = count_backfill(self._settings, self.schema, self.table, self._where)
        _show_plan(self.plan, self._tasks, rows, self._chunk, as_json=as_json)


def show_all(*, as_json: bool) -> None:
    """Show a line for each backfill."""
    found = backfill_store(load(ListenerSettings)).read()
    if as_json:
        print_json([_described(each) for each in found])
        return
    table = table_of("id", "table", "state", "rows", "rows/s", "left", "asked for by")
    for each in found:
        shown = _described(each)
        cells = shown["id"], shown["table"], shown["state"], _rows(shown), _rate(shown), _left(shown)
        table.add_row(*map(escape, (*cells, f"{shown['who']}, {shown['at']}")))
    console().print(table)


def show_one(name: str, *, as_json: bool) -> None:
    """Show everything known about one."""
    shown = _described(_one(backfill_store(load(ListenerSettings)), name))
    if as_json:
        print_json(shown)
        return
    for title, value in shown.items():
        if value is not None:
            console().print(f"{title}: {escape(str(value))}", highlight=False, soft_wrap=True)


def watch(name: str) -> None:
    """Show the progress until it has ended; exit with status 1 if it did not complete."""
    store = backfill_store(load(ListenerSettings))
    shown = _follow(store, name)
    typer.echo(f"{shown['state']}: {_rows(shown)}" + (f" {shown['error']}" if shown["error"] else ""))
    raise typer.Exit(0 if shown["state"] == "done" else 1)


def _one(store: BackfillStore, wanted: str) -> BackfillState:
    found = [each for each in store.read() if each.backfill.id.startswith(wanted)]
    if len(found) != 1:
        raise CommandRefusedError(
            f"There is no backfill {wanted}." if not found else f"Several backfills begin with {wanted}.",
            hint="See them: python -m listener backfills",
            code="backfill_unknown",
        )
    return found[0]


def _show_plan(plan: TablePlan, tasks: list[str], rows: int, chunk: int, *, as_json: bool) -> None:
    chunks = rows // chunk + 1
    shown = {
        "table": f"{plan.schema}.{plan.table}",
        "rows": rows,
        "chunks": chunks,
        "key": list(plan.key),
        "tasks": tasks,
        "query_plan": list(plan.query_plan),
    }
    if as_json:
        print_json(shown)
        return
    typer.echo(
        f"{counted(rows, 'row')} of {shown['table']}, in {counted(chunks, 'chunk')} by {', '.join(plan.key)}, "
        f"to {', '.join(tasks)}. The first chunk:"
    )
    for line in plan.query_plan:
        typer.echo(f"  {line}")


def _follow(store: BackfillStore, name: str) -> dict[str, Any]:
    text = TextColumn("{task.description}")
    columns = SpinnerColumn(), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), text
    with Progress(*columns, console=console()) as bar:
        line = bar.add_task("", total=_described(_one(store, name))["estimate"])
        while not (state := _one(store, name)).is_over:
            shown = _described(state)
            total = max(shown["estimate"] or 0, shown["found"])
            told = f"{shown['state']}, {_rate(shown)}/s, {_left(shown)} left"
            bar.update(line, completed=shown["found"], total=total, description=told)
            time.sleep(_LOOK_EVERY)
        shown = _described(state)
        bar.update(line, completed=shown["found"], total=shown["found"], description=shown["state"])
    return shown


def _described(each: BackfillState) -> dict[str, Any]:
    backfill, progress = each.backfill, each.progress
    return {
        "id": backfill.id,
        "table": f"{backfill.schema}.{backfill.table}",
        "where": backfill.where,
        "state": each.state,
        "found": progress.rows + progress.left_out,
        "sent": progress.rows,
        "left_out": progress.left_out,
        "chunks": progress.chunks,
        "estimate": backfill.estimate,
        "rows_per_second": None if each.rate is None else round(each.rate),
        "seconds_left": None if each.seconds_left is None else round(each.seconds_left),
        "routes": list(backfill.routes),
        "rate": backfill.rate,
        "chunk": backfill.chunk,
        "who": backfill.who,
        "at": backfill.at,
        "started_at": progress.started_at,
        "updated_at": progress.updated_at,
        "error": backfill.error,
        "code": backfill.code,
        "hint": backfill.hint,
    }


def _rows(shown: Mapping[str, Any]) -> str:
    told = f"{shown['sent']:,} sent"
    return f"{told}, {shown['left_out']:,} by the stream" if shown["left_out"] else told


def _rate(shown: Mapping[str, Any]) -> str:
    return "" if shown["rows_per_second"] is None else f"{shown['rows_per_second']:,}"


def _left(shown: Mapping[str, Any]) -> str:
    return "" if shown["seconds_left"] is None else str(timedelta(seconds=shown["seconds_left"]))
