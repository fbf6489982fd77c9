"""Shell commands in pages: the parser of each command's program parses it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import celery.bin.celery
import typer.main
from celery.bin.base import CLIContext
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import benchmarks.__main__
import cdc_tasks.celery
import cdc_tasks.cli.commands
import demo.__main__
import listener.cli.commands
from cdc_tasks.variables import KNOWN, TWINS
from tests.acceptance import chaos
from tests.support.snippets.blocks import CHECKOUT
from tests.support.snippets.errors import IncompleteCommandError, WrongSnippetError
from tests.support.snippets.settings import check_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["ELSEWHERE", "check", "check_django", "check_line", "lines_of"]

# Programs that are not ours, and the tests that check their lines.
ELSEWHERE: Final = {
    ".": "the shell's",
    "cat": "the system's",
    "cd": "the shell's",
    "awk": "the system's",
    "base64": "the system's",
    "docker": "tests/acceptance/test_compose_stack.py, where there is Docker",
    "echo": "the shell's",
    "head": "the system's",
    "install": "the system's",
    "journalctl": "the system's",
    "kill": "the shell's",
    "mkdir": "the system's",
    "pkill": "the system's",
    "ps": "the system's",
    "psql": "the server's",
    "rabbitmqctl": "tests/integration/test_queues_of_others.py",
    "redis-cli": "tests/acceptance/test_snippets.py gives the commands to a server",
    "sed": "the system's",
    "sleep": "the system's",
    "systemctl": "tests/integration/test_deploy.py looks at the units",
    "time": "the shell's",
    "umask": "the shell's",
    "uvicorn": "tests/acceptance/test_how_to.py",
}
# Variables of other programs.
_OF_OTHERS: Final = {"OTEL_EXPORTER_OTLP_ENDPOINT", "PATH", "PYTHONPATH", "SHOP_BROKER"}
_PARSE_FOR_DJANGO: Final = """
import json, sys, django
from django.core.management import load_command_class
django.setup()
for name, *arguments in json.load(sys.stdin):
    load_command_class("django.core", name).create_parser("manage.py", name).parse_args(arguments)
"""
_INCOMPLETE: Final = {"MissingParameter", "NoArgsIsHelpError"}  # click's, and those of typer's own click
_PROMPTS: Final = ("$ ", "# ")  # the second one is root's
_OF_FILES: Final = {"-c", "--constraint", "-r", "--requirement"}  # pip's
_METRICS_PORT: Final = 9187
_PATHS: Final = {"/metrics", "/livez", "/readyz"}
_ASSIGNMENT: Final = re.compile(r"^([A-Za-z_]\w*)=(.*)$", re.DOTALL)
_NESTED: Final = re.compile(r"\$\(([^()]*)\)")
_ENDS: Final = frozenset({";", "|", "||", "&", "&&", "(", ")"})
_REDIRECTIONS: Final = frozenset({">", ">>", "<", "2>", "<<<"})


def lines_of(text: str, *, has_prompts: bool) -> tuple[list[str], list[str]]:
    """Return the commands of a block, and the lines of output below them.

    A command that ends with a backslash continues on the next line.
    """
    commands: list[str] = []
    output: list[str] = []
    goes_on = False
    for line in text.splitlines():
        if goes_on:
            commands[-1] += f"\n{line}"
        elif not has_prompts and line.strip():
            commands.append(line)
        elif line.startswith(_PROMPTS):
            commands.append(line[2:])
        elif line.strip():
            output.append(line)
            continue
        else:
            continue
        goes_on = commands[-1].endswith(("\\", "|", "&&"))
    return commands, output


def check(commands: Sequence[str]) -> None:
    """Raise WrongSnippetError for the first of these commands that the shell or its program would refuse."""
    parsed = subprocess.run(
        ["/bin/bash", "-n"], input="\n".join(commands), text=True, capture_output=True, check=False
    )
    if parsed.returncode != 0:
        raise WrongSnippetError(parsed.stderr)
    for command in commands:
        check_line(command)


def check_line(command: str) -> None:
    """Raise WrongSnippetError if a program of this line would refuse its arguments."""
    while nested := _NESTED.search(command):
        check_line(nested[1])
        command = command.replace(nested[0], "VALUE")
    for words in _simple_commands(command):
        _check_words(words, command)


def _simple_commands(command: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a line, without redirections."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";|&()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if token in _REDIRECTIONS:
            next(tokens, None)
        elif token in _ENDS:
            yield words
            words = []
        else:
            words.append(token)
    yield words


def _check_words(words: list[str], command: str) -> None:
    while words and (assigned := _ASSIGNMENT.match(words[0])):
        _check_variable(assigned[1], assigned[2])
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    if program == "time":
        _check_words(arguments, command)
        return
    program = program.rpartition("/")[2]
    if program in {"python", "python3", ".venv/bin/python"}:
        program, arguments = _python(arguments)
    if words[0].startswith(("examples/", "scripts/")) and (CHECKOUT / words[0]).exists():
        return
    if checker := _CHECKERS.get(program):
        checker(arguments)
    elif program not in ELSEWHERE:
        raise WrongSnippetError(f"nothing here knows the program {program}: {command}")


def _python(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments[:1] == ["-m"]:
        return f"-m {arguments[1]}", arguments[2:]
    return (arguments[0], arguments[1:]) if arguments else ("-m", [])


def _check_variable(name: str, value: str) -> None:
    if name not in KNOWN | TWINS.keys() | _OF_OTHERS:
        raise WrongSnippetError(f"there is no variable {name}")
    check_value(name, value)


def _export(arguments: list[str]) -> None:
    for each in arguments:
        name, equals, value = each.partition("=")
        if equals:
            _check_variable(name, value)


def _of_typer(cli: typer.Typer) -> Callable[[list[str]], None]:
    return lambda arguments: _click(typer.main.get_command(cli), _without_app(arguments))


def _of_function(function: Callable[..., Any]) -> Callable[[list[str]], None]:
    app = typer.Typer()
    app.command()(function)
    return _of_typer(app)


def _celery(arguments: list[str]) -> None:
    context = CLIContext(app=cdc_tasks.celery.app, no_color=True, workdir=None)
    _click(celery.bin.celery.celery, _without_app(arguments), context)


def _without_app(arguments: list[str]) -> list[str]:
    """Remove `-A app`, which may also follow the command."""
    rest = list(arguments)
    for name in ("-A", "--app"):
        if name in rest:
            place = rest.index(name)
            if len(rest) == place + 1:
                raise IncompleteCommandError(f"{name} has no value")
            del rest[place : place + 2]
    return rest


def _click(command: Any, arguments: list[str], obj: Any = None) -> None:
    """Make the command parse these arguments without running."""
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if getattr(command, "commands", None) and arguments and not arguments[0].startswith("-"):
        raise WrongSnippetError(f"{command.name} has no command {arguments[0]}")
    if {"--help", "--version", "--install-completion", "--show-completion"} & set(arguments):
        return  # these end a program before it checks anything else
    try:
        command.make_context(command.name, list(arguments), obj=obj)
    except Exception as error:  # typer has a click of its own, which is not public
        is_incomplete = type(error).__name__ in _INCOMPLETE
        kind = IncompleteCommandError if is_incomplete else WrongSnippetError
        raise kind(f"{command.name} {' '.join(arguments)}: {_said(error)}") from error


def _said(error: Exception) -> str:
    say = getattr(error, "format_message", None)
    return str(say()) if say else repr(error)


def _pip(arguments: list[str]) -> None:
    if arguments[:1] != ["install"]:
        raise WrongSnippetError(f"pip {' '.join(arguments)}")
    for before, each in pairwise(arguments):
        if each.startswith("-") or each == "." or before in _OF_FILES:
            continue
        needed = Requirement(each.replace(".[", "cdc-tasks["))
        ours = metadata.metadata("cdc-tasks").get_all("Provides-Extra") or []
        if needed.name == "cdc-tasks" and (wrong := needed.extras - set(ours)):
            raise WrongSnippetError(f"there is no extra {', '.join(wrong)}")
        if canonicalize_name(needed.name) not in _packages():
            raise WrongSnippetError(f"nothing here needs the package {needed.name}")


@cache
def _packages() -> set[str]:
    return {canonicalize_name(each.metadata["Name"]) for each in metadata.distributions()}


def _make(arguments: list[str]) -> None:
    targets = [each for each in arguments if "=" not in each]
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in targets:
        if not re.search(rf"^{target}:", makefile, re.MULTILINE):
            raise WrongSnippetError(f"there is no target {target}")
    for given in arguments:
        name, equals, value = given.partition("=")
        if equals and name == "ARGS" and (checker := _CHECKERS.get(f"make {targets[0]}")):
            checker(shlex.split(value))


def _django(arguments: list[str]) -> None:
    if arguments[:1] == ["cdc"]:
        _of_typer(listener.cli.commands.cli)(arguments[1:])


def check_django(commands: Sequence[str]) -> None:
    """Make Django parse its own commands among these, all at once, because it starts slowly."""
    given = [shlex.split(each, comments=True) for each in commands if "manage.py " in each]
    given = [words[words.index("manage.py") + 1 :] for words in given]
    given = [words for words in given if words[:1] != ["cdc"]]
    if not given:
        return
    parsed = subprocess.run(
        [sys.executable, "-c", _PARSE_FOR_DJANGO],
        cwd=CHECKOUT / "tests" / "django_project",
        env={"DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": f".:{CHECKOUT}"},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if parsed.returncode != 0:
        raise WrongSnippetError(parsed.stderr)


def _curl(arguments: list[str]) -> None:
    for each in arguments:
        page = urlsplit(each)
        if page.port == _METRICS_PORT and page.path not in _PATHS:
            raise WrongSnippetError(f"the listener has no page {page.path}")


def _kubectl(arguments: list[str]) -> None:
    """Check the command after `--`, which runs in a container."""
    if "--" in arguments:
        _check_words(arguments[arguments.index("--") + 1 :], " ".join(arguments))


def _copy(arguments: list[str]) -> None:
    for each in arguments:
        if each.startswith("deploy/") and not list(CHECKOUT.glob(each)):
            raise WrongSnippetError(f"there is no file {each}")


def _nothing_to_check(_: list[str]) -> None:
    """Accept anything."""


_CHECKERS: Final[dict[str, Callable[[list[str]], None]]] = {
    "-m listener": _of_typer(listener.cli.commands.cli),
    "cdc-listener": _of_typer(listener.cli.commands.cli),
    "-m cdc_tasks": _of_typer(cdc_tasks.cli.commands.cli),
    "cdc-tasks": _of_typer(cdc_tasks.cli.commands.cli),
    "-m demo": _of_function(demo.__main__.demo),
    "make demo": _of_function(demo.__main__.demo),
    "-m benchmarks": _of_function(benchmarks.__main__.main),
    "make bench": _of_function(benchmarks.__main__.main),
    "make chaos": _of_function(chaos.main),
    "-m venv": _nothing_to_check,
    "celery": _celery,
    "cp": _copy,
    "curl": _curl,
    "export": _export,
    "kubectl": _kubectl,
    "make": _make,
    "manage.py": _django,
    "pip": _pip,
}
