"""Dead letters, the tasks that gave up: list, show, replay or drop them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdc_tasks.cli.chosen_app import chosen
from cdc_tasks.cli.recorded import recorded
from cdc_tasks.environment import shown_context
from cdc_tasks.words import counted, described_context

if TYPE_CHECKING:
    from cdc_tasks.dead_letters.store import DeadLetter

__all__ = ["cli"]

cli = typer.Typer(help=__doc__, no_args_is_help=True)

_MOMENTS = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Ids of dead letters.")]
OfTask = Annotated[str | None, typer.Option("--task", help="Only those of this task; * matches any letters.")]
Since = Annotated[
    datetime | None,
    typer.Option(formats=_MOMENTS, help="Only those that failed then or later (UTC)."),
]
Until = Annotated[
    datetime | None, typer.Option(formats=_MOMENTS, help="Only those that failed before (UTC).")
]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@cli.command("list")
def list_letters(
    *, task: OfTask = None, since: Since = None, until: Until = None, as_json: AsJSON = False
) -> None:
    """List the dead letters, oldest first, and the number of parked changes."""
    found = _matching(task, since, until)
    if as_json:
        print(json.dumps([_shown(each) for each in found], indent=2))  # noqa: T201  # the command's result
        return
    contexts = {each.id: shown_context(each.context) for each in found}
    has_context = any(contexts.values())
    more = ["context"] if has_context else []
    table = Table("id", "failed at", "task", "tries", "error", *more, box=None, pad_edge=False)
    for each in found:
        row = (
            each.id,
            each.failed_at[:19],
            each.task,
            str(len(each.attempts) + 1),
            each.error.split("\n")[0],
            *([described_context(contexts[each.id])] if has_context else []),
        )
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a pipe or a file has no width
    console.print(table)
    _say_parked()


def _shown(letter: DeadLetter) -> dict[str, Any]:
    """Return the letter for JSON, with the part of its context that may be shown."""
    return {**asdict(letter), "context": shown_context(letter.context)}


@cli.command()
def show(letter_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show one dead letter as JSON: its message, its error with the traceback, and its earlier attempts."""
    from cdc_tasks.dead_letters import store as dead_letters

    print(json.dumps(_shown(dead_letters.get(letter_id)), indent=2))  # noqa: T201  # the command's result


@cli.command()
def replay(
    ids: Ids = None, *, task: OfTask = None, since: Since = None, until: Until = None, everything: All = False
) -> None:
    """Send the tasks again with the same ids, so that no notification is sent twice."""
    from cdc_tasks.cli.letters import replay_letter

    with recorded("letter_replay", _named(ids, task, since, until), "sent again") as doing:
        for letter in _chosen(ids, task, since, until, everything=everything):
            was_sent, result = replay_letter(chosen(), letter)
            doing.did(result, went_well=was_sent)
            typer.echo(f"{letter.id}: {result}", err=not was_sent)


@cli.command()
def drop(
    ids: Ids = None, *, task: OfTask = None, since: Since = None, until: Until = None, everything: All = False
) -> None:
    """Delete dead letters. A message group that waits for one of them continues."""
    from cdc_tasks.cli.letters import drop_letter

    with recorded("letter_drop", _named(ids, task, since, until), "dropped") as doing:
        for letter in _chosen(ids, task, since, until, everything=everything):
            result = drop_letter(chosen(), letter)
            doing.did(result)
            typer.echo(f"{letter.id}: {result}")


def _named(
    ids: Sequence[str] | None, task: str | None, since: datetime | None, until: datetime | None
) -> list[str]:
    """Return the command's targets, for the record."""
    if ids:
        return list(ids)
    given = {"--task": task, "--since": since, "--until": until}
    return [f"{name} {value}" for name, value in given.items() if value is not None] or ["all"]


def _chosen(
    ids: Sequence[str] | None,
    task: str | None,
    since: datetime | None,
    until: datetime | None,
    *,
    everything: bool,
) -> list[DeadLetter]:
    from cdc_tasks.dead_letters import store as dead_letters

    if ids:
        return [dead_letters.get(letter_id) for letter_id in ids]
    if not (task or since or until or everything):
        raise typer.BadParameter("give some ids, --task, --since, --until or --all")
    return _matching(task, since, until)


def _matching(task: str | None, since: datetime | None, until: datetime | None) -> list[DeadLetter]:
    from cdc_tasks.dead_letters import store as dead_letters

    found = [
        each
        for each in dead_letters.every()
        if (task is None or fnmatch(each.task, task))
        and (since is None or datetime.fromisoformat(each.failed_at) >= _in_utc(since))
        and (until is None or datetime.fromisoformat(each.failed_at) < _in_utc(until))
    ]
    return sorted(found, key=lambda each: (each.failed_at, each.id))


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _say_parked() -> None:
    """Print the number of parked changes, which the listener stores beside its checkpoint."""
    from cdc_tasks.worker import parked_counts

    chosen()
    for name, number in parked_counts.counts().items():
        typer.echo(
            f"In addition, {counted(number, 'parked change')}, whose routes failed: "
            f"CDC_NAME={name} python -m listener parked list",
            err=True,
        )
