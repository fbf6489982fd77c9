"""Replays: fire routes again for past changes, and look up what happened to a row."""

from __future__ import annotations

from datetime import datetime
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
Tables = Annotated[
    list[str] | None,
    typer.Option("--table", metavar="TABLE", help="Only changes of this table, or schema.table."),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--id",
        metavar="VALUE",
        help="Only changes of the row whose column id has this value; or COLUMN=VALUE.",
    ),
]
Until = Annotated[
    str, typer.Option("--until", metavar="TIME", help="Committed before then: a time like --since, or now.")
]

_WAIT: Final = 15.0

replays = typer.Typer(
    help="Replays: list, show, pause, resume or cancel them. Without a command: list.",
    invoke_without_command=True,
)


def add_to(cli: typer.Typer) -> None:
    """Add the commands to the program."""
    cli.command()(replay)
    cli.add_typer(replays, name="replays")
    cli.command()(journal)


def replay(
    *,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Committed from then on: 14:00 (today, local), or 2026-11-26T14:00+01:00.",
        ),
    ],
    until: Until = "now",
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="Fire the routes with this task.")
    ] = None,
    route: Annotated[list[str] | None, typer.Option("--route", metavar="ID", help="Fire this route.")] = None,
    all_routes: Annotated[bool, typer.Option("--all-routes", help="Fire all routes.")] = False,
    table: Tables = None,
    row: Rows = None,
    new_ids: Annotated[
        bool,
        typer.Option("--new-ids", help="Give tasks and changes new ids. Without it they keep their old ids."),
    ] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="Read up to this many changes a second.")
    ] = None,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Replay even if changes of a part of this time are missing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count changes and tasks, but send nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress until it is done.")] = False,
    wait: Wait = _WAIT,
    as_json: AsJSON = False,
) -> None:
    """Fire routes, as they are now, for changes of the journal or the binlog, in order. The stream continues."""
    from listener.cli.replay_progress import Asked, dry_run_of
    from listener.cli.replay_progress import watch as watch_it

    names = [*(task or ()), *(route or ())]
    if bool(names) == all_routes:
        raise typer.BadParameter("name routes with --task or --route, or use --all-routes")
    begin, end = parsed_time(since, "--since"), parsed_time(until, "--until")
    if end <= begin:
        raise typer.BadParameter(f"{until!r} is not later than {since!r}", param_hint="--until")
    asked = Asked(begin, end, table or [], row or [])
    if dry_run:
        dry_run_of(asked, names, as_json=as_json)
        return
    arguments: dict[str, Any] = {
        "since": begin.isoformat(),
        "until": end.isoformat(),
        "tables": asked.selection.tables,
        "row": asked.selection.row,
        "routes": names,
        "new_ids": new_ids,
        "rate": rate,
        "accept_gap": accept_gap,
    }
    name = give("replay", arguments, wait, as_json=as_json)
    if watch:
        watch_it(name)
    elif not as_json:
        typer.echo(f"See its progress: python -m listener replays show {name}")


def journal(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Whose changes to show: a table, or schema.table.")
    ] = None,
    *,
    row: Rows = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="As for `replay`.")] = None,
    until: Until = "now",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Up to this many of the last changes.")] = 100,
    as_json: AsJSON = False,
) -> None:
    """Show what happened to a row or a table; without a table, what the journal contains. Shows row values."""
    from listener.cli.replay_progress import Asked, show_changes, show_summary

    if table is None and not row and since is None:
        show_summary(as_json=as_json)
        return
    begin = None if since is None else parsed_time(since, "--since")
    end = None if until == "now" else parsed_time(until, "--until")
    show_changes(Asked(begin, end, [table] if table else [], row or []), limit, as_json=as_json)


def parsed_time(text: str, option: str) -> datetime:
    """Return the time given as text."""
    from listener.daemon.asked import NotATimeError, parse_time

    try:
        return parse_time(text)
    except NotATimeError:
        raise typer.BadParameter(
            f"{text!r} is not a time: write now, 14:00, or 2026-11-26T14:00:00+01:00", param_hint=option
        ) from None


@replays.callback()
def start(context: typer.Context, *, as_json: AsJSON = False) -> None:
    if context.invoked_subcommand is None:
        list_(as_json=as_json)


@replays.command("list")
def list_(*, as_json: AsJSON = False) -> None:
    """Show the waiting, the running and the ended replays."""
    from listener.cli.replay_progress import show_all

    show_all(as_json=as_json)


@replays.command()
def show(
    replay: Id,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until it is done.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show one: its request, its progress, and why it does not continue."""
    from listener.cli.replay_progress import show_one
    from listener.cli.replay_progress import watch as watch_it

    show_one(replay, as_json=as_json)
    if watch:
        watch_it(replay)


@replays.command()
def pause(replay: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Pause it; the stream and other replays continue. Survives restarts."""
    give("replay_pause", {"replay": replay}, wait, as_json=as_json)


@replays.command()
def resume(replay: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Continue a paused or failed one where it stopped."""
    give("replay_resume", {"replay": replay}, wait, as_json=as_json)


@replays.command()
def cancel(replay: Id, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Cancel it. Messages already sent stay in the queues."""
    give("replay_cancel", {"replay": replay}, wait, as_json=as_json)
