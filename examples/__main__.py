"""`python -m examples NAME`: start an example with its servers, and show what it does."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from cdc_tasks import logs
from cdc_tasks.errors import CDCError
from examples.servers import DatabaseKind
from examples.stage import EXAMPLES, started

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UnknownExampleError(CDCError):
    """There is no such example."""


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(EXAMPLES)}.")],
    *,
    once: Annotated[bool, typer.Option("--once", help="Exit after the story, with status 0.")] = False,
    database: Annotated[
        DatabaseKind | None,
        typer.Option("--database", help="The database to start; only the example outbox runs on MariaDB."),
    ] = None,
) -> None:
    """Start an example, play its story, and leave it running until Ctrl-C.

    DATABASE_URL and CELERY_BROKER_URL name servers of your own: an empty database, and an empty database of a Redis.
    What they do not name is started, and removed at the end.
    """
    logs.configure(level="warning")
    for each in _SIGNALS:
        signal.signal(each, _end)
    if name not in EXAMPLES:
        raise UnknownExampleError(
            f"There is no example {name!r}.", hint=f"Name one of these: {', '.join(EXAMPLES)}."
        )
    story = import_module(f"examples.stories.{name.replace('-', '_')}")
    with started(name, story, database) as stage:
        story.play(stage)
        if not once:
            stage.stay(story.TRY)


def _end(signal_number: int, _frame: FrameType | None) -> NoReturn:
    """Stop everything; further signals do not interrupt that."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    # Ctrl-C is the normal end; a supervisor that sent SIGTERM expects its number in the status.
    raise SystemExit(0 if signal_number == signal.SIGINT else 128 + signal_number)


def main() -> None:
    """Run an example; print a CDCError without a traceback, and exit with status 1."""
    try:
        typer.run(run)
    except CDCError as error:
        Console(stderr=True, soft_wrap=True).print(f"{error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
