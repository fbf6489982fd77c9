"""The whole system on one machine, with a live scenario: `make demo`, or `python -m demo`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from cdc_tasks import logs
from cdc_tasks.errors import CDCError, mask_secrets
from demo.databases import DatabaseKind
from demo.narrator import Narrator

if TYPE_CHECKING:
    from types import FrameType

    from demo.stack import Stack

__all__ = ["main"]

_STOP_TIMEOUT = 60.0  # seconds to stop everything
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """A signal ends the demo. This is not an error, and no `except Exception` may catch it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Exit after the scenario, with status 0.")] = False,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Skip the scenario, and begin with your own SQL.")
    ] = False,
    database: Annotated[
        DatabaseKind | None,
        typer.Option(
            "--database",
            help="The database to start: postgresql (the default, from a wheel), mariadb (has to be installed) or "
            "mysql (unpacked from Debian's packages).",
        ),
    ] = None,
) -> None:
    """Run SQL statements, and show the Slack and Teams messages and the cache refreshes that follow.

    The demo starts a database and Valkey, unless DATABASE_URL and CELERY_BROKER_URL (and CACHE_URL) name others:
    PostgreSQL, MySQL or MariaDB. Ctrl-C stops everything and removes it.
    """
    logs.configure(level="warning")
    narrator = Narrator()
    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # e.g. under nohup
            signal.signal(each, _end)
    try:
        _run(narrator, once=once, has_scenario=not prompt, database=database)
    except Ended as ended:
        narrator.ended()
        # Ctrl-C is the normal end; a supervisor that sent SIGTERM expects its number in the status.
        raise SystemExit(0 if ended.signal_number == signal.SIGINT else 128 + ended.signal_number) from None
    narrator.ended()


def _run(narrator: Narrator, *, once: bool, has_scenario: bool, database: DatabaseKind | None) -> None:
    from demo import scenario, stack  # slow to import: not for `--help`

    begun = time.monotonic()
    _print_addresses(narrator)
    with stack.started(narrator.starting, database) as running:
        try:
            narrator.running(running, time.monotonic() - begun)
            if has_scenario:
                scenario.play(running, narrator)
            if not once:
                _serve(running, narrator)
        finally:
            narrator.ending()


def _print_addresses(narrator: Narrator) -> None:
    """Print which of the user's servers the demo is about to use."""
    for variable in ("DATABASE_URL", "CELERY_BROKER_URL", "CACHE_URL"):
        if url := os.environ.get(variable):
            narrator.using(mask_secrets(url), variable)
    if os.environ.get("DATABASE_URL"):
        narrator.note_of_tables()


def _serve(running: Stack, narrator: Narrator) -> None:
    """Read SQL from a person at a terminal; without a terminal, show the effects of other sessions."""
    from demo import prompt, scenario

    at_prompt = narrator.is_interactive and sys.stdin.isatty()
    narrator.invite(running, at_prompt=at_prompt)
    (prompt.serve if at_prompt else scenario.watch)(running, narrator)


def _end(signal_number: int, _frame: FrameType | None) -> NoReturn:
    """Raise Ended once; ignore further signals while everything is being stopped."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    # Python drops an exception raised in a destructor. Then this timer ends the process, and the kernel its children.
    timer = threading.Timer(_STOP_TIMEOUT, os._exit, [128 + signal_number])
    timer.daemon = True
    timer.start()
    raise Ended(signal_number)


def main() -> None:
    """Run the demo; print a CDCError without a traceback, and exit with status 1."""
    try:
        typer.run(demo)
    except CDCError as error:
        Console(stderr=True, soft_wrap=True).print(f"{error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
