"""Changes that a route or the broker refused: list, show, replay or drop them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_tasks.command_line import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from listener.cli.parked_changes import ParkedStore
    from listener.daemon.settings import ListenerSettings
    from listener.publish.parked import ParkedChange

__all__ = ["cli"]

cli = typer.Typer(help=__doc__, no_args_is_help=True)

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
OfTask = Annotated[str | None, typer.Option("--task", help="Only those of this task.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="The ids of parked changes.")]
All = Annotated[bool, typer.Option("--all", help="All of them; with --task, all of that task.")]


@cli.command("list")
def list_parked(*, task: OfTask = None, as_json: AsJSON = False) -> None:
    """List what is parked, the oldest first."""
    from listener.cli.output import show_parked
    from listener.cli.parked_changes import chosen, opened
    from listener.daemon.settings import ListenerSettings, load

    with opened(load(ListenerSettings)) as store:
        found = chosen(store, None, task, everything=True)
    if as_json:
        print_json([_described(each) for each in found])
    else:
        show_parked(found)


@cli.command()
def show(parked_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show one with its error and its row, as JSON."""
    from listener.cli.parked_changes import opened
    from listener.daemon.settings import ListenerSettings, load

    with opened(load(ListenerSettings)) as store:
        print_json(_described(store.get(parked_id)))


def _described(parked: ParkedChange) -> dict[str, Any]:
    return {
        "id": parked.id,
        "task": parked.task,
        "error": parked.error,
        "parked_at": parked.parked_at.isoformat(),
        "change": parked.shown_change(),
        **({} if parked.logged is None else {"logged": parked.logged}),
        **({} if parked.arguments is None else {"arguments": parked.arguments}),
        **({} if parked.kwargs is None else {"kwargs": parked.kwargs}),
        **({"is_shortened": True} if parked.is_shortened else {}),
    }


@cli.command()
def replay(ids: Ids = None, *, everything: All = False, task: OfTask = None) -> None:
    """Send them to their routes again, as the routes are now. The task ids are the same as at the first attempt."""
    from listener.cli.parked_changes import replay_parked
    from listener.daemon.application import celery_app, router_for

    def again(store: ParkedStore, parked: ParkedChange) -> tuple[bool, str]:
        return replay_parked(store, parked, router, app)

    settings = _settings()
    router, app = router_for(settings), celery_app(settings)
    _do("parked_replay", "sent again", again, ids, task, everything=everything)


@cli.command()
def drop(ids: Ids = None, *, everything: All = False, task: OfTask = None) -> None:
    """Drop them permanently."""
    from listener.cli.parked_changes import drop_parked

    _do(
        "parked_drop",
        "dropped",
        lambda store, parked: (True, drop_parked(store, parked)),
        ids,
        task,
        everything=everything,
    )


def _settings() -> ListenerSettings:
    from listener.daemon.settings import ListenerSettings, load

    return load(ListenerSettings)


def _do(
    verb: str,
    done: str,
    act: Callable[[ParkedStore, ParkedChange], tuple[bool, str]],
    ids: list[str] | None,
    task: str | None,
    *,
    everything: bool,
) -> None:
    """Do it with each chosen change, print the result, and record it. Exit status 1 if one failed."""
    from listener.cli.parked_changes import chosen, opened, recorded

    settings, failed = _settings(), 0
    with opened(settings) as store, recorded(settings, verb, ids or [task or "all"], done) as outcomes:
        for parked in chosen(store, ids, task, everything=everything):
            went_well, told = act(store, parked)
            outcomes.append((went_well, told))
            failed += not went_well
            typer.echo(f"{parked.id}: {told}", err=not went_well)
    raise typer.Exit(1 if failed else 0)
