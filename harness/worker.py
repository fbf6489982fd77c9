"""A real Celery worker, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import redis

from harness.process_logs import log_of
from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CHECKOUT = Path(__file__).resolve().parents[1]


def unacknowledged(client: redis.Redis, prefix: str = "") -> list[Any]:
    """Return the unacknowledged messages of all workers from Redis."""
    keys = client.scan_iter(match=f"{prefix}cdc:unacked:*")
    return [message for key in keys for message in client.hvals(key)]


class Worker:
    """`celery -A cdc_tasks worker`, or another application's, in its own process group, with its log in a file."""

    # How processes are started; the tests have a faster way, without repeated imports.
    popen: ClassVar[Callable[..., subprocess.Popen[bytes]]] = subprocess.Popen

    def __init__(
        self,
        environment: Mapping[str, str],
        *arguments: str,
        concurrency: int = 2,
        log_file: Path | None = None,
        mingle: bool = False,
        application: str = "cdc_tasks",
        checkout: Path = _CHECKOUT,
    ) -> None:
        """`checkout` has the code to run: this one, or another version."""
        self._application = application
        self._checkout = checkout
        self._environment = {**os.environ, **environment, "CDC_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
        self._arguments = ["-c", str(concurrency), *arguments]
        if not mingle:  # no other worker exists, and mingling would take a second
            self._arguments.append("--without-mingle")
        self._log_file = log_file
        if log_file is not None:
            self._arguments += ["--logfile", str(log_file)]
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".worker.log")  # noqa: SIM115  # closed in `__exit__`

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "celery", "-A", self._application, "worker", "--loglevel", "info"]
        self.process = self.popen(
            [*command, *self._arguments],
            cwd=self._checkout,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._log_ends = log_of("worker", self.process.pid, lambda: self.log)
        try:
            wait_until(self._is_ready, timeout=40, what="the worker to be ready")
        except BaseException:
            self.__exit__()  # or its open log would cause a warning in an unrelated test
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()  # the servers end too: a test of the end calls `stop`
        self._log_ends()
        self._log.close()

    def stop(self) -> int:
        """End it with SIGTERM, as an init system would, and return its exit status."""
        self.process.terminate()
        return self.process.wait(at_most(30))

    def kill(self) -> None:
        """SIGKILL, to the whole group: no process can clean up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pause(self, *, on: bool = True) -> None:
        """Let it hang, as on a machine without memory, or continue."""
        os.killpg(self.process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    @property
    def log(self) -> str:
        printed = Path(self._log.name).read_text()
        own = self._log_file
        return printed + (own.read_text() if own is not None and own.exists() else "")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines with this event name; not the last one while it is being written."""
        complete = self.log.rpartition("\n")[0]
        lines = [json.loads(line) for line in complete.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended at once:\n{self.log}")
        return " ready." in self.log
