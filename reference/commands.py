"""docs/reference/commands.md: the command lines, from their parsers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, get_args, get_origin

import typer

from cdc_tasks.cli.commands import cli as tasks_cli
from listener.cli.commands import cli as listener_cli
from reference.text import code, escaped, page, table, unwrapped

__all__ = ["commands_page"]

_HEAD = """
| program | installed name | purpose |
| --- | --- | --- |
| `python -m listener` | `cdc-listener` | run, check and control the listener |
| `python -m cdc_tasks` | `cdc-tasks` | keys, accounts, dead letters, the cache, health of workers |
| `manage.py cdc` | | in a [Django project](../django.md): the same commands as `python -m listener`, with Django's settings |

`cdc-listener` also works in a directory that has its own package `listener`. `-A` may be anywhere before `--`.
`manage.py cdc` also takes Django's `--settings`, `--pythonpath`, `--no-color`, `--force-color`, `--traceback` and
`--skip-checks`. It does not read `-A` if the project has one Celery app.

**Environment.** All commands read the [settings](../settings.md): those of `python -m listener` the listener's, those of
`python -m cdc_tasks` the workers'. An option has priority over its variable.

**Exit status.** 0: done. 1: it failed, and the message and the hint are on standard error. 2: an option or an argument is
wrong. Other statuses are listed with each command.

**`--json`.** The result, or the error with [`code`](errors.md), `message` and `hint`, is JSON on standard output.
"""

_PROGRAMS: Final[Mapping[str, typer.Typer]] = {
    "python -m listener": listener_cli,
    "python -m cdc_tasks": tasks_cli,
}

# What each command exits with beside 0, 1 and 2 for done, failed and used wrongly.
_STATUSES: Final = {
    "python -m listener run": "0: a signal stopped it. 1: something needs a person; the last log line, `failed`, has the code "
    "and the hint.",
    "python -m listener backfill": "1 also with `--watch`, if the backfill does not end as done.",
    "python -m listener replay": "1 also with `--watch`, if the replay does not end as done.",
    "python -m listener parked replay": "1 also if one of several could not be replayed.",
}


def commands_page() -> str:
    """Return the page."""
    return page("Commands", _HEAD, *_parts())


def _parts() -> Iterator[str]:
    for program, cli in _PROGRAMS.items():
        root: Any = typer.main.get_command(cli)
        yield f"## `{program}`"
        yield _sentences(root.help)
        yield _options(root)
        for path, command in _commands(program, root):
            yield f"### `{path}`"
            yield f"<!-- output: from the parser -->\n```text\n{_usage(path, command)}\n```"
            yield _sentences(command.help)
            yield _options(command)
            if path in _STATUSES:
                yield f"Exit status {_STATUSES[path]}"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from _commands(f"{path} {name}", each)
        else:
            yield f"{path} {name}", each


def _usage(path: str, command: Any) -> str:
    words = [path, *(_word(each) for each in command.params)]
    return " ".join(filter(None, words))


def _word(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _metavar(parameter)
        return name if parameter.required else f"[{name}]"
    if parameter.name == "help":
        return ""
    value = "" if parameter.is_flag else f" {_metavar(parameter)}"
    word = f"{parameter.opts[0]}{value}"
    return word if parameter.required else f"[{word}]"


def _metavar(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    if parameter.metavar:
        return str(parameter.metavar if is_option else parameter.metavar.strip("[]"))
    return _kind(parameter) if is_option else str(parameter.name.upper())


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is Literal:
            return "|".join(get_args(each))
        if get_origin(each) is list:
            return "TEXT"
    types = {annotation, *get_args(annotation)}
    return "NUMBER" if types & {int, float} else "TEXT"


def _options(command: Any) -> str:
    rows = [_option(each) for each in command.params if not getattr(each, "hidden", False)]
    return table(("option or argument", "default", "environment", "meaning"), rows)


def _option(parameter: Any) -> tuple[str, ...]:
    if parameter.param_type_name == "argument":
        names = f"`{_metavar(parameter)}`"
    else:
        value = "" if parameter.is_flag else f" {_metavar(parameter)}"
        spelled = [*parameter.opts, *parameter.secondary_opts]
        names = ", ".join(code(f"{each}{value}") for each in spelled)
    environment = f"`{parameter.envvar}`" if parameter.envvar else ""
    return names, _default(parameter), environment, escaped(parameter.help or "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    default = parameter.default
    if default is None or default is False or default == []:
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _sentences(help_text: str | None) -> str:
    return escaped(unwrapped(help_text or ""))
