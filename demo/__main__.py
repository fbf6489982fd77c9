"""The whole system on one machine, with a live scenario: `make demo`, or `python -m demo`."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from cdc_tasks import logs
from cdc_tasks.errors import CDCError
from demo.databases import DatabaseKind
from demo.narrator import Narrator

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

_LAST_RESORT = 60.0  # seconds for everything to be stopped
_ENDED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """A signal asks us to end: no error, and nothing that an `except Exception` may swallow."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End with status 0 after the scenario.")] = False,
    database: Annotated[
        DatabaseKind | None,
        typer.Option(
            "--database",
            help="What to start: postgresql (the default, from a wheel); mariadb, which has to be installed; "
            "mysql, unpacked from Debian's packages.",
        ),
    ] = None,
) -> None:
    """Watch plain SQL become Slack and Teams messages and a fresh cache, through the real programs.

    The database and Valkey are started, unless DATABASE_URL and CELERY_BROKER_URL (and CACHE_URL) name others:
    PostgreSQL, MySQL or MariaDB. Everything ends and goes away with Ctrl-C.
    """
    logs.configure(level="warning")
    narrator = Narrator()
    for each in _ENDED_BY:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
            signal.signal(each, _end)
    try:
        _run(narrator, once=once, database=database)
    except Ended as ended:
        narrator.ended()
        # Ctrl-C is how a demo ends; a supervisor that sent SIGTERM wants to hear of it.
        raise SystemExit(0 if ended.signal_number == signal.SIGINT else 128 + ended.signal_number) from None
    narrator.ended()


def _run(narrator: Narrator, *, once: bool, database: DatabaseKind | None) -> None:
    from demo import scenario, stack  # heavy: `--help` need not wait for it

    begun = time.monotonic()
    with stack.started(narrator.starting, database) as running:
        try:
            narrator.running(running, time.monotonic() - begun)
            scenario.play(running, narrator)
            if not once:
                narrator.invite(running)
                scenario.watch(running, narrator)
        finally:
            narrator.ending()


def _end(signal_number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind once; whoever insists while everything is being stopped is not heard twice."""
    for each in _ENDED_BY:
        signal.signal(each, signal.SIG_IGN)
    # Python drops an exception that is raised in a destructor: then the kernel ends what we have started.
    last_resort = threading.Timer(_LAST_RESORT, os._exit, [128 + signal_number])
    last_resort.daemon = True
    last_resort.start()
    raise Ended(signal_number)


def main() -> None:
    """Run the demo; an error of ours is told without a traceback, and ends with status 1."""
    try:
        typer.run(demo)
    except CDCError as error:
        Console(stderr=True, soft_wrap=True).print(f"{error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
