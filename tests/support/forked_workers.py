"""Celery workers that start in a tenth of a second, to be killed by the hundred: forks of a loaded process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHECKOUT = Path(__file__).resolve().parents[2]

# Each line on its standard input starts a worker, whose process id it prints.
_WARM = """
import os, signal, sys
from importlib import import_module
app = import_module(sys.argv[1]).app
app.loader.import_default_modules()
app.finalize()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if pid := os.fork():
        os.setpgid(pid, pid)  # as the child does: whichever is first, it can be killed now
        print(pid, flush=True)
        continue
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    options = ["--loglevel", "warning", "-c", "2", "--without-mingle", "--without-gossip"]
    app.worker_main(["worker", *options, *sys.argv[2:]])
    os._exit(0)
"""


class ForkedWorkers:
    """A nursery of workers, each in its own process group with a pool of two processes."""

    def __init__(
        self, environment: Mapping[str, str], *arguments: str, application: str = "cdc_tasks.celery"
    ) -> None:
        self._command = [sys.executable, "-c", _WARM, application, *arguments]
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".workers.log")  # noqa: SIM115  # closed in `__exit__`
        self.alive: list[int] = []

    def __enter__(self) -> Self:
        self._warm = subprocess.Popen(
            self._command,
            cwd=_CHECKOUT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        if failure:
            sys.stderr.write(self.log[-20_000:])  # pytest shows it
        for pid in list(self.alive):
            self.kill(pid)
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        self._warm.stdin.close()
        self._warm.wait(at_most(10))
        self._warm.stdout.close()
        self._log.close()

    def start(self) -> int:
        """Start one, and return its process id at once."""
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        self._warm.stdin.write("start\n")
        self._warm.stdin.flush()
        pid = int(self._warm.stdout.readline())
        self.alive.append(pid)
        return pid

    def pause(self, pid: int) -> None:
        """SIGSTOP: later data reaches its sockets but is not read."""
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGSTOP)

    def kill(self, pid: int) -> None:
        """SIGKILL the worker and its pool: no process can clean up."""
        self.alive.remove(pid)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def show_stacks(self) -> list[int]:
        """Make each worker's main process log its threads' stacks; return the process ids of those that exist."""
        found = [pid for pid in self.alive if is_alive(pid)]
        for pid in found:
            before = len(self.log)
            os.kill(pid, signal.SIGUSR1)
            with suppress(AssertionError):  # it hangs, and does not answer
                wait_until(partial(self._has_grown, before), timeout=1)
        return found

    def _has_grown(self, before: int) -> bool:
        return len(self.log) > before

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()


def is_alive(pid: int) -> bool:
    """Return whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
