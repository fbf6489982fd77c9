"""The last step: SIGKILL stops the listener while rows are written, and no message is lost or sent twice."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted
from demo.observer import Message, TaskEnded, TaskReceived

if TYPE_CHECKING:
    from demo.narrator import Narrator
    from demo.observer import Observation
    from demo.stack import Stack

__all__ = ["Crash", "CrashError"]

_ROWS, _KILLED_AFTER, _STARTED_AFTER = 20, 7, 14  # the last row is written when the listener is back
_TIMEOUT: Final = 60.0  # seconds until all messages have arrived
_SERVICES: Final = ("slack", "teams")
_TASK: Final = "cdc_tasks.notify_ticket_insert"
_INSERT: Final = "INSERT INTO tickets (title, assigned_to_id) VALUES ('ROW', 2)"
_ROW: Final = re.compile(r"Row (\d+) of")


class CrashError(CDCError):
    """A change was lost, or had its effect twice."""


class Crash:
    """Writes rows, kills and restarts the listener in between, and counts the messages."""

    def __init__(self, stack: Stack, narrator: Narrator) -> None:
        self._stack = stack
        self._narrator = narrator
        self._tasks: list[str] = []  # ids, in the order in which workers received them
        self._running: set[str] = set()
        self._messages: Counter[tuple[str, int]] = Counter()  # service, row

    def play(self) -> None:
        """Play the step. Raises CrashError with the missing and the repeated messages."""
        self._narrator.step(
            "The listener is killed while rows are written, and started again",
            sql=f"{_statement(1)};\n-- and so on: {_ROWS} transactions",
        )
        self._narrator.look("/", "no listener is reading; later, how far behind it is")
        started_again = self._write()
        self._stack.listener.wait()
        # When the messages of the last row have arrived, any repeated earlier one has arrived too.
        self._insert(_ROWS)
        self._count()
        self._check(time.monotonic() - started_again)

    def _write(self) -> float:
        """Write the rows; return time.monotonic() of the listener's second start."""
        listener, started_again = self._stack.listener, 0.0
        for row in range(1, _ROWS):
            self._insert(row)
            if row == _KILLED_AFTER:
                self._narrator.shell(
                    f"kill -KILL {listener.pid}  # the listener, after {counted(row, 'row')}"
                )
                listener.kill()
            if row == _STARTED_AFTER:
                self._narrator.shell(f"python -m listener  # again, after {counted(row, 'row')}")
                started_again = time.monotonic()
                listener.launch()
        return started_again

    def _insert(self, row: int) -> None:
        self._stack.sample.execute(_statement(row))

    def _count(self) -> None:
        for observation in self._stack.observations(timeout=_TIMEOUT):
            self._take(observation)
            if len(self._messages) == len(_SERVICES) * _ROWS and not self._running:
                return

    def _take(self, observation: Observation) -> None:
        match observation:
            case TaskReceived():
                self._running.add(observation.id)
                if observation.name == _TASK:
                    self._tasks.append(observation.id)
            case TaskEnded():
                self._running.discard(observation.id)
            case Message() if found := _ROW.search(observation.text):
                self._messages[observation.service, int(found[1])] += 1

    def _sent(self, service: str) -> str:
        number = sum(count for (each, _), count in self._messages.items() if each == service)
        return counted(number, "message")

    def _check(self, seconds: float) -> None:
        rows = range(1, _ROWS + 1)
        missing = [
            (service, row) for service in _SERVICES for row in rows if not self._messages[service, row]
        ]
        twice = [each for each, count in self._messages.items() if count > 1]
        repeated = [each for each, count in Counter(self._tasks).items() if count > 1]
        if missing or twice or repeated:
            raise CrashError(
                f"missing: {missing}; twice: {twice}; repeated tasks: {repeated}",
                hint=self._stack.log_ends,
            )
        self._narrator.note(
            f"{_ROWS} tickets, {counted(len(self._tasks), 'task')}, {self._sent('slack')} on Slack,"
            f" {self._sent('teams')} on Teams:"
            f" all of them {seconds:.1f} s after the listener's restart"
        )
        self._narrator.proof("Nothing is missing, and nothing arrived twice.")


def _statement(row: int) -> str:
    return _INSERT.replace("ROW", f"Row {row} of {_ROWS}")
