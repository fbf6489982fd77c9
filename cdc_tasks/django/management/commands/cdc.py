"""`manage.py cdc`: the listener's commands, on this project's database, routes and Celery app."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser
from collections.abc import Sequence
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cdc_tasks import command_line
from cdc_tasks.django.settings import put_into_environment

__all__ = ["Command"]

_FLAGS: Final = ("--no-color", "--force-color", "--skip-checks", "--traceback")


class Command(BaseCommand):
    """Passes all arguments after `cdc` to the listener's command line, unchanged."""

    help = "The listener's commands (cdc-tasks): run, check, routes, status, parked …"
    requires_system_checks = ()  # `cdc check` reports more, and `cdc run` has to start quickly

    def add_arguments(self, parser: CommandParser) -> None:
        """For call_command("cdc", "status", "--json")."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *_: Any, arguments: Sequence[str] = (), **__: Any) -> None:
        """Raise CommandError with the listener's exit status if that is not 0."""
        status = _run(list(arguments), "manage.py cdc")
        if status:
            raise CommandError(f"manage.py cdc {' '.join(arguments)} ended with {status}", returncode=status)

    def run_from_argv(self, argv: list[str]) -> None:
        """Run `manage.py cdc …`: options such as --help and --json are the listener's."""
        arguments = _without_djangos_own(argv[2:])
        # The command that a reload runs again: Django has put its own options into the environment.
        sys.orig_argv[-len(argv) :] = [*argv[:2], *arguments]
        sys.exit(_run(arguments, f"{os.path.basename(argv[0])} {argv[1]}"))  # noqa: PTH119 - it is a word


def _without_djangos_own(arguments: list[str]) -> list[str]:
    """Remove the options that Django has handled, and pass colours on as the listener's variables."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--settings", "--pythonpath"):
        parser.add_argument(name)
    for name in _FLAGS:
        parser.add_argument(name, action="store_true")
    given, rest = parser.parse_known_args(arguments)
    if given.no_color:
        os.environ.update(NO_COLOR="1")
    if given.force_color:
        os.environ.update(FORCE_COLOR="1")
    return rest


def _run(arguments: list[str], program: str) -> int:
    """Run the listener's command line, and return its exit status."""
    before, sys.argv = sys.argv, [program, *arguments]
    try:
        command_line.run(_with_settings, program=program)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before


def _with_settings(**given: Any) -> Any:
    from listener.cli.commands import cli

    if "--help" not in sys.argv:
        put_into_environment()
    return cli(**given)
