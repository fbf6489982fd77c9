"""Keys that are held up: list them, show or skip the task that they wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdc_tasks.cli.recorded import recorded
from cdc_tasks.command_line import print_json
from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted

if TYPE_CHECKING:
    from cdc_tasks.broker.redis.message_groups import HeldUp

__all__ = ["UnknownKeyError", "cli"]

cli = typer.Typer(help=__doc__, no_args_is_help=True)

_MOST_SHOWN = 100  # waiting messages

Key = Annotated[str, typer.Argument(metavar="KEY", help="A key as `keys list` shows it.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class UnknownKeyError(CDCError):
    """No message has this key."""


@cli.command("list")
def list_keys(*, as_json: AsJSON = False) -> None:
    """List the keys that have waiting messages or that a failed task holds, the longest held up first.

    A key may be personal data.
    """
    from cdc_tasks.broker.message_groups import groups_of
    from cdc_tasks.celery import app

    with groups_of(app) as groups:
        found = sorted(groups.held_up(), key=lambda each: (each.since, each.key))
    if as_json:
        print_json([each._asdict() for each in found])
        return
    table = Table("key", "since", "state", "task", "task id", "waiting", box=None, pad_edge=False)
    for each in found:
        table.add_row(
            *map(escape, (each.key, each.since, each.state, each.task, each.task_id, str(each.waiting)))
        )
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a pipe or a file has no width
    console.print(table)


@cli.command()
def show(key: Key, *, as_json: AsJSON = False) -> None:
    """Show which task holds a key up, since when, and the first waiting tasks."""
    from cdc_tasks.broker.message_groups import groups_of
    from cdc_tasks.celery import app

    with groups_of(app) as groups:
        found = _known(groups.of_key(key), key)
        waiting = groups.waiting(key, most=_MOST_SHOWN)
    if as_json:
        print_json({**found._asdict(), "first": [each._asdict() for each in waiting]})
        return
    typer.echo(f"{found.key}: {found.task} {found.task_id}, {_said(found)} since {found.since}")
    typer.echo(f"{counted(found.waiting, 'message')} waiting:" if found.waiting else "nothing waits")
    for each in waiting:
        typer.echo(f"  {each.task} {each.task_id} for {each.queue}")


@cli.command()
def skip(
    key: Key,
    *,
    force: Annotated[bool, typer.Option("--force", help="Also while a worker has the task.")] = False,
) -> None:
    """Let a key continue without the task that holds it up.

    The task is not deleted. A failed one stays a dead letter. One that is retried later runs after the others.
    """
    with recorded("key_skip", [key], "skipped") as doing:
        result = _skip(key, force=force)
        doing.did(result)
    typer.echo(f"{key}: {result}")


def _skip(key: str, *, force: bool) -> str:
    """Let the key continue; return what happened."""
    from cdc_tasks.broker.message_groups import groups_of
    from cdc_tasks.celery import app

    with groups_of(app) as groups:
        found = _known(groups.of_key(key), key)
        if found.state == "taken" and not force:
            raise UnknownKeyError(
                f"A worker has {found.task} {found.task_id}: it may be running.",
                hint="Wait for its end. To run the next one beside it, add --force.",
                code="key_taken",
            )
        return "goes on" if groups.skip(key, found.task_id) else "has gone on meanwhile"


def _known(found: HeldUp | None, key: str) -> HeldUp:
    if found is None:
        raise UnknownKeyError(f"No message has the key {key!r}.", hint="python -m cdc_tasks keys list")
    return found


def _said(found: HeldUp) -> str:
    states: dict[str, Any] = {
        "queued": "queued or due later",
        "taken": "taken by a worker",
        "failed": "failed; see it with `python -m cdc_tasks dead-letters show`,",
    }
    return str(states[found.state])
