"""Worker, Flower and listener as child processes, started as a user starts them."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

from demo.server_process import ServerError, ServerProcess

__all__ = ["Flower", "Listener", "Program", "Worker"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_LOG_LINES_SHOWN = 15


class Program(ServerProcess):
    """A Python program that is launched at once and waited for later, so that several start side by side."""

    arguments: ClassVar[list[str]]  # for the interpreter
    ready_line: ClassVar[str]  # what its log says when it serves
    stop_timeout = 10

    def __init__(self) -> None:
        super().__init__()
        self._log_start = 0  # where in the log this run of it begins

    @property
    def url(self) -> str:
        """Where people can look at it; empty where there is nothing to see."""
        return ""

    def launch(self) -> None:
        """Start it, and return at once."""
        self._log_start = len(self.log)
        self._launch()

    def wait(self) -> None:
        """Return when it serves; raises ServerError where it ends instead, or takes too long."""
        deadline = time.monotonic() + self.start_timeout
        while not self._is_ready():
            if not self.running or time.monotonic() > deadline:
                raise self._failure()
            time.sleep(0.02)

    def check(self) -> None:
        """Raise ServerError if it has ended by itself."""
        if not self.running:
            raise ServerError(f"the {self.name} has ended by itself", hint=self.last_words)

    @property
    def last_words(self) -> str:
        """The end of its log, for people."""
        lines = self.log.splitlines()[-_LOG_LINES_SHOWN:]
        return "\n    ".join([f"the end of its log, {self.name}:", *lines]) if lines else "its log is empty"

    def _command(self) -> list[str]:
        return [sys.executable, *self.arguments]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def _is_ready(self) -> bool:
        return self.ready_line in self.log[self._log_start :]

    def _failure(self) -> ServerError:
        return ServerError(f"the {self.name} did not start", hint=self.last_words)


class Worker(Program):
    """`celery -A cdc_tasks worker`, with two processes."""

    name = "worker"
    arguments: ClassVar = [
        *("-m", "celery", "-A", "cdc_tasks", "worker"),
        *("--hostname=demo@%h", "--concurrency=2", "--loglevel=INFO"),
        "--without-mingle",  # there are no neighbours, and waiting for their answer takes a second
    ]
    ready_line = " ready."


class Flower(Program):
    """`celery -A cdc_tasks flower`, for this machine only."""

    name = "flower"
    arguments: ClassVar = ["-m", "celery", "-A", "cdc_tasks", "flower"]
    stop_timeout = 5

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [*super()._command(), "--address=127.0.0.1", f"--port={self.port}"]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=5) as answer:  # noqa: S310 - our own
                return bool(answer.status == 200)
        except OSError:
            return False


class Listener(Program):
    """`python -m listener run`."""

    name = "listener"
    arguments: ClassVar = ["-m", "listener", "run"]
    ready_line = "streaming"
