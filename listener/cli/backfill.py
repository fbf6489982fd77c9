"""Backfills: send the rows that are there, and see how far that is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final

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
from listener.cli.control import give
from listener.cli.output import console, table_of
from listener.control.backfills import CHUNK, BackfillState, BackfillStore, chosen_routes
from listener.control.commands import Command, CommandRefusedError
from listener.core.backfill import TablePlan
from listener.daemon.database_url import home_schema
from listener.daemon.load_routes import load_router
from listener.daemon.settings import ListenerSettings, load
from listener.daemon.wiring import backfill_store, count_backfill, plan_backfill

__all__ = ["add_to"]

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Wait = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for a listener to accept it."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]

_WAIT: Final = 15.0
_LOOK_EVERY: Final = 0.5

backfills = typer.Typer(
    help="Backfills: list, show, pause, resume or cancel them. Without a command: list.",
    invoke_without_command=True,
)


def add_to(cli: typer.Typer) -> None:
    """Add the commands to the program."""
    cli.command()(backfill)
    cli.add_typer(backfills, name="backfills")


def backfill(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table, or schema.table.")],
    *,
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="Only rows for which this condition is true.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="Send them to the table's routes with this task."),
    ] = None,
    route: Annotated[
        list[str] | None, typer.Option("--route", metavar="ID", help="Send them to this route of the table.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="At most so many rows a second.")
    ] = None,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, max=100_000, help="Rows that are read at a time.")
    ] = CHUNK,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the rows and show the plan, and send nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show how far it is until it is done.")] = False,
    wait: Wait = _WAIT,
    as_json: AsJSON = False,
) -> None:
    """Send the rows that are in a table as reads, while the stream goes on: to its routes that take EventType.READ."""
    settings = load(ListenerSettings)
    schema, name = _names(settings, table)
    plan = plan_backfill(settings, schema, name, where, chunk)
    names = [*(task or ()), *(route or ())]
    router = load_router(settings.cdc_routes, settings.source_url)
    tasks = [each.task for each in chosen_routes(router.routes, schema, name, names)]
    if dry_run:
        _show_plan(plan, tasks, count_backfill(settings, schema, name, where), chunk, as_json=as_json)
        return
    arguments: dict[str, Any] = {"schema": schema, "table": name, "where": where, "routes": names}
    arguments |= {"rate": rate, "chunk": chunk, "estimate": plan.estimate}
    command = Command(verb="backfill", arguments=arguments)
    give(command, wait, as_json=as_json)
    if watch:
        _watch(backfill_store(settings), command.id)
    elif not as_json:
        typer.echo(f"See how far it is: python -m listener backfills show {command.id}")


@backfills.callback()
def start(context: typer.Context, *, as_json: AsJSON = False) -> None:
    if context.invoked_subcommand is None:
        list_(as_json=as_json)


@backfills.command("list")
def list_(*, as_json: AsJSON = False) -> None:
    """Show the backfills that wait, the one that is being done, and those that have ended."""
    found = backfill_store(load(ListenerSettings)).read()
    if as_json:
        print_json([_described(each) for each in found])
        return
    table = table_of("id", "table", "state", "rows", "rows/s", "left", "asked for by")
    for each in found:
        shown = _described(each)
        table.add_row(
            *map(
                escape,
                (shown["id"], shown["table"], shown["state"], _rows(shown), _rate(shown), _left(shown)),
            ),
            escape(f"{shown['who']}, {shown['at']}"),
        )
    console().print(table)


@backfills.command()
def show(
    backfill: Id,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Until it is done.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show one: what was asked for, how far it is, and why it does not go on."""
    store = backfill_store(load(ListenerSettings))
    shown = _described(_one(store, backfill))
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        if value is not None:
            console().print(f"{name}: {escape(str(value))}", highlight=False, soft_wrap=True)
    if watch:
        _watch(store, shown["id"])


@backfills.command()
def pause(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Let it wait; the stream and other backfills go on. Survives restarts."""
    give(Command(verb="backfill_pause", arguments={"backfill": backfill}), wait, as_json=as_json)


@backfills.command()
def resume(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Let one that is paused, or has failed, go on where it was."""
    give(Command(verb="backfill_resume", arguments={"backfill": backfill}), wait, as_json=as_json)


@backfills.command()
def cancel(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """End it. What was sent stays in the queues."""
    give(Command(verb="backfill_cancel", arguments={"backfill": backfill}), wait, as_json=as_json)


def _names(settings: ListenerSettings, table: str) -> tuple[str, str]:
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else (home_schema(settings.database_url.get_secret_value()), table)


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


def _watch(store: BackfillStore, name: str) -> None:
    """Show how far it is until it has ended; exit status 1 if it is not done."""
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console()) as bar:
        shown = _described(_one(store, name))
        line = bar.add_task("", total=shown["estimate"])
        while not (state := _one(store, name)).is_over:
            shown = _described(state)
            total = max(shown["estimate"] or 0, shown["found"])
            told = f"{shown['state']}, {_rate(shown)}/s, {_left(shown)} left"
            bar.update(line, completed=shown["found"], total=total, description=told)
            time.sleep(_LOOK_EVERY)
        shown = _described(state)
        bar.update(line, completed=shown["found"], total=shown["found"], description=shown["state"])
    typer.echo(f"{shown['state']}: {_rows(shown)}" + (f" {shown['error']}" if shown["error"] else ""))
    raise typer.Exit(0 if shown["state"] == "done" else 1)


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
