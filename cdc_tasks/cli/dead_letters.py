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
    """Return the letter as JSON has it, with what may be shown of its context."""
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
    from cdc_tasks.dead_letters import store as dead_letters

    for letter in _chosen(ids, task, since, until, everything=everything):
        if letter.raw is not None:
            typer.echo(f"{letter.id}: not sent, as it is not a task message: show it, and drop it", err=True)
            continue
        _send(chosen(), letter)
        dead_letters.forget(
            letter
        )  # after sending: a crash in between sends it twice with one id, and loses nothing
        typer.echo(f"{letter.id}: sent to {letter.task}")


@cli.command()
def drop(
    ids: Ids = None, *, task: OfTask = None, since: Since = None, until: Until = None, everything: All = False
) -> None:
    """Delete dead letters. A message group that waits for one of them goes on."""
    from cdc_tasks.dead_letters import store as dead_letters

    for letter in _chosen(ids, task, since, until, everything=everything):
        dropped = dead_letters.forget(letter)
        if dropped:
            _let_its_key_go(letter)
        typer.echo(f"{letter.id}: {'dropped' if dropped else 'kept, as it has failed again'}")


def _let_its_key_go(letter: DeadLetter) -> None:
    from cdc_tasks.broker.message_groups import groups_of
    from cdc_tasks.celery import app
    from cdc_tasks.routing.message_groups import HOLD_HEADER, KEY_HEADER

    if letter.group.get(HOLD_HEADER):
        with groups_of(app) as groups:
            groups.let_go(letter.group[KEY_HEADER], letter.id)


def _send(app: Any, letter: DeadLetter) -> None:
    from cdc_tasks.broker.queues import queue_of_key
    from cdc_tasks.dead_letters.store import ATTEMPTS
    from cdc_tasks.routing.contexts import CONTEXT_HEADER
    from cdc_tasks.worker.redacted_args import redacted

    queue = queue_of_key(app, letter.queue)
    where = {} if queue is None else {"queue": queue}
    context = {CONTEXT_HEADER: letter.context} if letter.context else {}
    failed = {"at": letter.failed_at, "error": letter.error, "replayed": _now()}
    app.send_task(
        letter.task,
        args=letter.args,
        kwargs=letter.kwargs,
        task_id=letter.id,
        argsrepr=redacted(letter.args),
        kwargsrepr=redacted(letter.kwargs),
        headers={**letter.group, **context, ATTEMPTS: [*letter.attempts, failed]},
        **where,
        **letter.options,
    )


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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
