"""Backfills: send the existing rows, and show their progress."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from listener.cli.control import give

__all__ = ["add_to"]

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Wait = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for a listener to accept it."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")]

_WAIT: Final = 15.0
_CHUNK: Final = 1_000

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
        float | None, typer.Option("--rate", min=0.1, help="Read up to this many rows a second.")
    ] = None,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, max=100_000, help="Rows to read at a time.")
    ] = _CHUNK,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the rows and show the plan, but send nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress until it is done.")] = False,
    wait: Wait = _WAIT,
    as_json: AsJSON = False,
) -> None:
    """Send a table's existing rows as reads to its routes that take EventType.READ. The stream continues."""
    from listener.cli.backfill_progress import Planned
    from listener.cli.backfill_progress import watch as watch_it

    names = [*(task or ()), *(route or ())]
    planned = Planned(table, where, names, chunk)
    if dry_run:
        planned.show(as_json=as_json)
        return
    arguments: dict[str, Any] = {
        "schema": planned.schema,
        "table": planned.table,
        "where": where,
        "routes": names,
    }
    arguments |= {"rate": rate, "chunk": chunk, "estimate": planned.plan.estimate}
    name = give("backfill", arguments, wait, as_json=as_json)
    if watch:
        watch_it(name)
    elif not as_json:
        typer.echo(f"See its progress: python -m listener backfills show {name}")


@backfills.callback()
def start(context: typer.Context, *, as_json: AsJSON = False) -> None:
    if context.invoked_subcommand is None:
        list_(as_json=as_json)


@backfills.command("list")
def list_(*, as_json: AsJSON = False) -> None:
    """Show the waiting, the running and the ended backfills."""
    from listener.cli.backfill_progress import show_all

    show_all(as_json=as_json)


@backfills.command()
def show(
    backfill: Id,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until it is done.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show one: its request, its progress, and why it does not continue."""
    from listener.cli.backfill_progress import show_one
    from listener.cli.backfill_progress import watch as watch_it

    show_one(backfill, as_json=as_json)
    if watch:
        watch_it(backfill)


@backfills.command()
def pause(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Pause it; the stream and other backfills continue. Survives restarts."""
    give("backfill_pause", {"backfill": backfill}, wait, as_json=as_json)


@backfills.command()
def resume(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Continue a paused or failed one where it stopped."""
    give("backfill_resume", {"backfill": backfill}, wait, as_json=as_json)


@backfills.command()
def cancel(backfill: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Cancel it. Messages already sent stay in the queues."""
    give("backfill_cancel", {"backfill": backfill}, wait, as_json=as_json)


@backfills.command()
def dismiss(
    tables: Annotated[list[str] | None, typer.Argument(metavar="SCHEMA.TABLE…")] = None,
    *,
    wait: Wait = _WAIT,
    as_json: AsJSON = False,
) -> None:
    """Stop offering backfills of these tables after an accepted gap; without a table, of all tables."""
    give("backfill_dismiss", {"tables": tables or []}, wait, as_json=as_json)
