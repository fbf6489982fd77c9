"""The demo's own prompt: reads SQL, prints its result, and then its effects in the listener and the workers."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout
from sqlalchemy.exc import DBAPIError

from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted
from demo.narrator import IDEAS, Since
from demo.observer import TaskEnded, TaskReceived

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from demo.narrator import Narrator
    from demo.observer import Observation
    from demo.stack import Stack

__all__ = ["serve"]

_PROMPT: Final = "sql> "
_LEAVE: Final = frozenset({"\\q", "exit", "quit"})
_QUIET: Final = 0.5  # seconds without an observation after which the effects of a statement are complete
_NO_EFFECT: Final = 3.0  # seconds after which a statement counts as having no effects
_MOST: Final = 30.0  # seconds until the prompt returns in any case


def serve(stack: Stack, narrator: Narrator) -> None:
    """Read SQL and run it, until Ctrl-C, Ctrl-D or `quit`; raises ServerError if a program has ended."""
    with (
        patch_stdout(raw=True),
        closing(_Effects(stack, narrator)) as effects,
        closing(_Database(stack)) as database,
    ):
        session: PromptSession[str] = PromptSession(history=InMemoryHistory(IDEAS))
        while (line := _read(session, effects)) is not None:
            if line:
                _run(line, database, effects, narrator)


def _read(session: PromptSession[str], effects: _Effects) -> str | None:
    """Return a line; None if the person wants to leave."""
    effects.on_failure = lambda: _interrupt(session)
    try:
        line = session.prompt(_PROMPT, handle_sigint=False).strip()
    except (EOFError, KeyboardInterrupt):
        effects.check()
        return None
    finally:
        effects.on_failure = _nothing
    return None if line.rstrip("; ") in _LEAVE else line


def _nothing() -> None:
    """Do nothing."""


def _interrupt(session: PromptSession[str]) -> None:
    loop = session.app.loop
    if loop is not None:
        loop.call_soon_threadsafe(lambda: session.app.exit(exception=EOFError()))


def _run(line: str, database: _Database, effects: _Effects, narrator: Narrator) -> None:
    began = time.monotonic()
    effects.begin(Since(began, "the statement was sent"))
    try:
        columns, rows, changed = database.run(line)
    except DBAPIError as error:
        narrator.refused(str(error.orig).strip())
        return
    if columns:
        narrator.rows(columns, rows)
        return
    narrator.note("Done." if changed < 0 else f"{counted(changed, 'row')} changed.")
    if changed > 0 and not effects.wait():
        narrator.note("No task: no route matches this change. To see the routes: python -m listener routes")


class _Database:
    """One session, as in psql: each statement is committed by itself, unless the person begins a transaction."""

    def __init__(self, stack: Stack) -> None:
        self._sample = stack.sample
        self._connection: Connection | None = None

    def run(self, line: str) -> tuple[list[str], list[tuple[Any, ...]], int]:
        """Return the columns and rows of a result, and the number of changed rows: -1 if unknown."""
        if self._connection is None:
            self._connection = self._sample.session()
        try:
            result = self._connection.exec_driver_sql(line.rstrip("; "))
        except DBAPIError as error:
            self._connection.rollback()
            if error.connection_invalidated:
                self.close()
            raise
        if not result.returns_rows:
            return [], [], result.rowcount
        return list(result.keys()), [tuple(row) for row in result], 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Effects:
    """Prints effects in its own thread, including those that another terminal causes while no one types here."""

    def __init__(self, stack: Stack, narrator: Narrator) -> None:
        self._stack = stack
        self._narrator = narrator
        self._since: Since | None = None
        self._last: float | None = None  # time.monotonic() of the last effect of the statement
        self._running: set[str] = set()  # tasks
        self._failure: CDCError | None = None
        self._closed = False
        self.on_failure: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self, since: Since) -> None:
        """Count the times of the next effects from `since`."""
        self._since, self._last = since, None

    def wait(self) -> bool:
        """Wait until the statement's effects are complete; return whether there were any. Raises ServerError."""
        began = time.monotonic()
        while (now := time.monotonic()) - began < _MOST:
            self.check()
            if self._last is None:
                if now - began > _NO_EFFECT:
                    return False
            elif not self._running and now - self._last > _QUIET:
                return True
            time.sleep(0.05)
        return True

    def check(self) -> None:
        """Raise the error that has ended the watch, if there is one."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._closed = True
        self._thread.join(5)

    def _watch(self) -> None:
        try:
            while not self._closed:
                for observation in self._stack.observations(timeout=1):
                    self._take(observation)
        except CDCError as error:
            self._failure = error
            self.on_failure()

    def _take(self, observation: Observation) -> None:
        if isinstance(observation, TaskReceived):
            self._running.add(observation.id)
        elif isinstance(observation, TaskEnded):
            self._running.discard(observation.id)
        self._narrator.show(observation, since=self._since)
        self._last = time.monotonic()
