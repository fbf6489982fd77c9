"""The programs that read the same rows from the same server, in turn."""

from __future__ import annotations

import subprocess
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from benchmarks.routes import QUEUE
from benchmarks.stage import Stage

__all__ = ["Contender", "Counting", "Ours", "Queueing", "Run"]

AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass
class Run(ABC):
    """A running program."""

    process: subprocess.Popen[Any]

    @abstractmethod
    def progress(self) -> float:
        """Return its progress, in its own unit, which increases with the rows read."""

    def is_done(self, rows: int) -> bool:
        return self.progress() >= rows

    def end(self) -> None:
        """End the program, and clean up after it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Counting(Run):
    """A program that prints the number of rows that it has read, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(process)
        self._count = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def progress(self) -> float:
        return self._count

    def end(self) -> None:
        super().end()
        self._reader.join()

    def _read(self) -> None:
        with self.process.stdout or nullcontext(()) as lines:
            for line in lines:
                self._count = int(line)


class Contender(ABC, Generic[AnyStage]):
    """One way to read the changes of a database."""

    name: str
    share = 1.0  # of the rows; a slow contender reads only the first part

    @abstractmethod
    def prepare(self, stage: AnyStage) -> None:
        """Create what it needs before rows are written."""

    @abstractmethod
    def start(self, stage: AnyStage) -> Run:
        """Start the program."""

    def skip_the_rest(self, stage: AnyStage) -> None:
        """Remove the messages, and skip the rows that it has not read."""
        stage.broker.unlink(QUEUE)


class Ours(Contender[AnyStage]):
    """The listener: from the log to Celery messages."""

    name = "cdc-tasks"

    def prepare(self, stage: AnyStage) -> None:
        with stage.listener() as listener:
            listener.wait_for("streaming")
            listener.stop()

    def start(self, stage: AnyStage) -> Run:
        return Queueing(stage.listener().process, stage)


@dataclass
class Queueing(Run):
    """A listener, whose progress is the length of its queue."""

    stage: Stage

    def progress(self) -> float:
        return self.stage.queued()

    def end(self) -> None:
        """Stop it with SIGTERM, so that it acknowledges what it has published."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        super().end()
