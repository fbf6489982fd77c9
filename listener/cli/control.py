"""Commands for a running listener: pause, resume, skip, reload, and the record of commands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cdc_tasks.command_line import print_json

if TYPE_CHECKING:
    from listener.control.commands import Command, CommandQueue, Outcome

__all__ = ["add_to", "give"]

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Routes = Annotated[
    list[str] | None, typer.Argument(metavar="ROUTE…", help="Tasks, or route ids as `routes` shows them.")
]
Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for a listener to do it.")
]

_WAIT: Final = 15.0
_WAIT_FOR_RELOAD: Final = 60.0
_ASK_EVERY: Final = 0.1


def add_to(cli: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (pause, resume, skip, reload, commands):
        cli.command()(command)


def pause(routes: Routes = None, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Set the messages of these routes aside, in order; without a route, stop reading. Survives restarts."""
    give("pause", {"routes": routes or []}, wait, as_json=as_json)


def resume(routes: Routes = None, *, wait: Wait = _WAIT, as_json: AsJSON = False) -> None:
    """Resume paused routes, waiting messages first; without a route, all routes and the reading."""
    give("resume", {"routes": routes or []}, wait, as_json=as_json)


def skip(
    routes: Annotated[list[str], typer.Argument(metavar="ROUTE…", help="Tasks, or route ids.")],
    *,
    until: Annotated[
        str, typer.Option("--until", metavar="TIME", help="now, or a time such as 2026-11-26T14:00:00+01:00.")
    ],
    wait: Wait = _WAIT,
    as_json: AsJSON = False,
) -> None:
    """Fire nothing for changes committed until then; drops the messages that these routes have set aside."""
    arguments = {"routes": routes, "until": _time(until)}
    give("skip", arguments, wait, as_json=as_json)


def reload(*, wait: Wait = _WAIT_FOR_RELOAD, as_json: AsJSON = False) -> None:
    """Reload the routes without a restart. If `check` finds a problem, the old routes stay in force."""
    give("reload", {}, wait, as_json=as_json)


def commands(*, as_json: AsJSON = False) -> None:
    """Show what is paused or skipped, and the record: who gave which command, when, and its result."""
    from rich.markup import escape

    from listener.cli.output import console, table_of
    from listener.daemon.settings import ListenerSettings, load
    from listener.daemon.wiring import command_queue, control_state

    settings = load(ListenerSettings)
    state, queue = control_state(settings), command_queue(settings)
    state.read()
    record = queue.record()
    if as_json:
        print_json({"in_force": state.fields, "record": [_described(each) for each in record]})
        return
    for name, value in state.fields.items():
        if "who" in value:
            console().print(
                escape(
                    f"{name} {value.get('task', '')}: by {value['who']}, {value.get('since') or value['until']}"
                )
            )
    table = table_of("at", "by", "command", "result")
    for each in record:
        words = [each.command.verb, *_operands(each.command)]
        table.add_row(*map(escape, (each.command.at, each.command.who, " ".join(words), each.result)))
    console().print(table)


def _operands(command: Command) -> list[str]:
    """Return what the command concerns: a table or a backfill, and routes."""
    arguments = command.arguments
    named = [arguments[name] for name in ("table", "backfill", "replay") if name in arguments]
    return [*named, *arguments.get("routes", ()), *arguments.get("about", ())]


def give(verb: str, arguments: Mapping[str, Any], wait: float, *, as_json: bool) -> str:
    """Send a command to the listener, wait for the result, and print it; return the command's id.

    Exit with status 1 if it is refused.
    """
    from listener.control.commands import Command, CommandRefusedError
    from listener.daemon.settings import ListenerSettings, load
    from listener.daemon.wiring import command_queue

    command = Command(verb=verb, arguments=arguments)
    queue = command_queue(load(ListenerSettings))
    queue.give(command)
    outcome = _outcome(queue, command, wait)
    if as_json:
        print_json(_described(outcome))
    elif not outcome.is_refused:
        typer.echo(outcome.result)
    else:
        raise CommandRefusedError(outcome.result, hint=outcome.hint, code=outcome.code)
    if outcome.is_refused:
        raise typer.Exit(1)
    return command.id


def _outcome(queue: CommandQueue, command: Command, wait: float) -> Outcome:
    """Wait for the result. If no listener does it, withdraw the command and raise CommandRefusedError."""
    from listener.control.commands import CommandRefusedError

    end = time.monotonic() + wait
    while True:
        if (outcome := queue.outcome(command)) is not None:
            return outcome
        if time.monotonic() >= end and queue.withdraw(command):
            error = CommandRefusedError(
                f"No listener accepted the command within {wait:g} seconds, so it was withdrawn.",
                hint="Check whether a listener reads: python -m listener status",
                code="no_listener",
            )
            queue.note(command, error)
            raise error
        time.sleep(_ASK_EVERY)


def _time(text: str) -> str:
    if text == "now":
        return datetime.now(UTC).isoformat(timespec="microseconds")
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time", param_hint="--until") from None
    return time_.astimezone(UTC).isoformat(timespec="microseconds")


def _described(outcome: Outcome) -> Mapping[str, Any]:
    command = outcome.command
    return {
        "id": command.id,
        "command": command.verb,
        **command.arguments,
        "who": command.who,
        "at": command.at,
        "done_at": outcome.done_at,
        "done": not outcome.is_refused,
        "code": outcome.code,
        "result": outcome.result,
        "hint": outcome.hint,
    }
