"""Code that both command lines share: errors as text or JSON, the version, shell completion."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from cdc_tasks.errors import CDCError
from cdc_tasks.extras import needs_extras

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Version", "app_first", "print_json", "run"]

_COMPLETION: Final = ("--install-completion", "--show-completion")


def _print_version(*, is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"cdc-tasks {metadata.version('cdc-tasks')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Print the version.",
        is_eager=True,
        callback=lambda value: _print_version(is_asked=value),
    ),
]


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - this is the command's result


def app_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-A module` moved before the command; arguments after `--` stay."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first, rest = list[str](), list[str]()
    left = iter(arguments[:end])
    for each in left:
        if each in {"-A", "--app"}:
            first += [each, *([value] if (value := next(left, None)) is not None else [])]
        elif each.startswith("--app=") or (each.startswith("-A") and not each.startswith("--")):
            first.append(each)
        else:
            rest.append(each)
    return [*first, *rest, *arguments[end:]]


def run(
    cli: Callable[..., Any],
    *,
    program: str,
    explain: Callable[[Exception], CDCError | None] = lambda _error: None,
) -> NoReturn:
    """Run a command line; print an error without a traceback, and exit with status 1.

    With `--json` among the arguments the error is a JSON object with code, message and hint on standard output,
    otherwise it is text on standard error. `program` is the installed script, for shell completion, which cannot work
    for `python -m`. `explain` translates a driver's error, and returns None for unknown ones.
    """
    is_json = "--json" in sys.argv[1:]
    for_completion = any(each.startswith(_COMPLETION) for each in sys.argv[1:])
    more = {"prog_name": program} if for_completion else {}
    try:
        with needs_extras():
            sys.exit(cli(standalone_mode=not is_json, **more))
    except CDCError as error:
        _print(error, as_json=is_json)
        sys.exit(1)
    except Exception as error:
        if is_json and (usage := _of_usage(error)):
            _print(usage, as_json=True)
            sys.exit(2)
        if (explained := explain(error)) is None:
            raise
        _print(explained, as_json=is_json)
        sys.exit(1)


def _of_usage(error: Exception) -> CDCError | None:
    """Return what Typer would have printed about wrong arguments; None for other errors."""
    text = getattr(error, "format_message", None)  # of Typer's exceptions, or of Click's: versions differ
    if text is None or getattr(error, "exit_code", None) != 2:
        return None
    return CDCError(text(), hint="For help: --help", code="usage")


def _print(error: CDCError, *, as_json: bool) -> None:
    if as_json:
        print_json({"code": error.code, "message": error.message, "hint": error.hint})
    else:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
