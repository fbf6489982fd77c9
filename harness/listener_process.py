"""The listener as users run it: a separate process, configured by its environment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from harness.process_logs import log_of
from harness.waiting import at_most, wait_until

__all__ = ["ListenerProcess", "mortal"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_LAUNCHER = _CHECKOUT / "harness" / "launch.py"


def mortal(command: Sequence[str]) -> list[str]:
    """Return a command that ends with this process, even if it is killed, so a test leaves nothing running."""
    parent, as_who_we_are = str(os.getpid()), ["-1", "-1"]
    return [
        sys.executable,
        "-I",
        "-S",
        str(_LAUNCHER),
        parent,
        str(int(signal.SIGKILL)),
        *as_who_we_are,
        *command,
    ]


class ListenerProcess:
    """`python -m listener run`, or the same with a place to park at (`tests.acceptance.parking`)."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        park: tuple[str, int] | None = None,
        arguments: Sequence[str] = (),
        checkout: Path = _CHECKOUT,
    ) -> None:
        """`park` is a point, and how many times it is passed before the listener parks; `arguments` are for `run`.

        `checkout` has the code to run: this one, or another version.
        """
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1", "CDC_LOG_FORMAT": "json"}
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".listener.log")  # noqa: SIM115  # closed in `close`
        self._parked, self._parks = os.pipe()
        command = [sys.executable, "-m"]
        if park:
            command += ["tests.acceptance.parking", park[0], str(park[1]), str(self._parks), "run"]
        else:
            command += ["listener", "run"]
        command += arguments
        self.process = subprocess.Popen(
            mortal(command),
            cwd=checkout,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[self._parks],
            start_new_session=True,
        )
        self._log_ends = log_of("listener", self.process.pid, lambda: self.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what it logged under this name."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def wait_for(self, event: str, *, timeout: float = 20) -> dict[str, Any]:
        """Return the first line that it logs under this name; fail if it ends before."""

        def found() -> list[dict[str, Any]]:
            self.check_alive()
            return self.events(event)

        return wait_until(found, timeout=timeout, what=f"the listener to log {event!r}")[0]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_parked(self, seconds: float) -> bool:
        """Wait up to `timeout` for it to park; return whether it did. Fail if it ended by itself."""
        readable, _, _ = select.select([self._parked], [], [], seconds)
        self.check_alive()
        return bool(readable)

    def check_alive(self) -> None:
        """Fail if it ended by itself."""
        status = self.process.poll()
        if status is not None:
            raise AssertionError(f"the listener ended by itself with status {status}:\n{self.log[-3000:]}")

    def unpark(self) -> None:
        """Let it continue from where it parked."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: it ends without a clean-up."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, timeout: float = 15) -> int:
        """SIGTERM, as an init system would; returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(at_most(timeout))
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"no end {at_most(timeout):g} s after SIGTERM:\n{self.log[-3000:]}"
            ) from None

    def close(self) -> None:
        """Kill it if it still runs, and delete its log."""
        if self.running:
            self.kill()
        self._log_ends()
        for descriptor in (self._parked, self._parks):
            with suppress(OSError):
                os.close(descriptor)
        self._log.close()
