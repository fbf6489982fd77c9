"""The worker, Flower and the listener as child processes, started with the commands that a user types."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

from harness.server_process import ServerError, ServerProcess

__all__ = ["Console", "Flower", "Listener", "Program", "Worker"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_LOG_LINES_SHOWN = 15


class Program(ServerProcess):
    """A Python program. `launch` returns at once and `wait` is called later, so that several start in parallel."""

    arguments: ClassVar[list[str]]  # of the interpreter
    ready_line: ClassVar[str]  # the line in its log when it is ready
    stop_timeout = 10

    def __init__(self) -> None:
        super().__init__()
        self._log_start = 0  # where this run begins in the log

    @property
    def url(self) -> str:
        """The URL of its page; empty if it has none."""
        return ""

    def launch(self) -> None:
        """Start the program, and return at once."""
        self._log_start = len(self.log)
        self._launch()

    def wait(self) -> None:
        """Wait until it is ready; raises ServerError if it ends before, or takes too long."""
        deadline = time.monotonic() + self.start_timeout
        while not self._is_ready():
            if not self.running or time.monotonic() > deadline:
                raise self._failure()
            time.sleep(0.02)

    def check(self) -> None:
        """Raise ServerError if the program has ended."""
        if not self.running:
            raise ServerError(f"the {self.name} has ended by itself", hint=self.log_end)

    @property
    def log_end(self) -> str:
        """The last lines of the log, for an error's text."""
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
        return ServerError(f"the {self.name} did not start", hint=self.log_end)


class Worker(Program):
    """`celery -A cdc_tasks worker`, with two processes."""

    name = "worker"
    arguments: ClassVar = [
        *("-m", "celery", "-A", "cdc_tasks", "worker"),
        *("--hostname=demo@%h", "--concurrency=2", "--loglevel=INFO"),
        "--include=demo.order_tasks",
        "--without-mingle",  # there are no other workers, and waiting for their answers takes a second
    ]
    ready_line = " ready."


class Flower(Program):
    """`celery -A cdc_tasks flower`, reachable from this machine only."""

    name = "flower"
    arguments: ClassVar = ["-m", "celery", "-A", "cdc_tasks", "flower"]
    stop_timeout = 5

    console_url: str | None = None  # the target of links on its pages of tasks; None: from the environment

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _environment(self) -> dict[str, str]:
        linked = {} if self.console_url is None else {"CDC_CONSOLE_URL": self.console_url}
        return {**super()._environment(), **linked}

    def _command(self) -> list[str]:
        return [*super()._command(), "--address=127.0.0.1", f"--port={self.port}"]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=5) as answer:  # noqa: S310 - our own
                return bool(answer.status == 200)
        except OSError:
            return False


class Console(Program):
    """`python -m listener console`, reachable from this machine only."""

    name = "console"
    arguments: ClassVar = ["-m", "listener", "console"]
    ready_line = "console_ready"

    def __init__(self, flower_url: str) -> None:
        super().__init__()
        self._flower_url = flower_url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _environment(self) -> dict[str, str]:
        address = f"127.0.0.1:{self.port}"
        return {**super()._environment(), "CDC_CONSOLE_ADDRESS": address, "CDC_FLOWER_URL": self._flower_url}


class Listener(Program):
    """`python -m listener run`."""

    name = "listener"
    arguments: ClassVar = ["-m", "listener", "run"]
    ready_line = "streaming"

    @property
    def url(self) -> str:
        """The URL of its metrics for Prometheus."""
        return f"http://127.0.0.1:{self.port}/metrics"

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "CDC_METRICS_ADDRESS": f"127.0.0.1:{self.port}"}
