"""A server as a child process: a free port, a new directory, and a readable error if it does not start."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from cdc_tasks.errors import CDCError

__all__ = ["ServerError", "ServerProcess", "free_port"]

_LAUNCHER = Path(__file__).with_name("launch.py")
# Below the range of Linux' outgoing connections, so that a stopped server's port stays free.
_PORTS = range(20000, 32000)
_LOG_LINES_SHOWN = 25


class ServerError(CDCError):
    """A server did not start."""


class ServerProcess(ABC):
    """One server on 127.0.0.1, its data in a new directory that `close` removes.

    Start it from a thread that lives as long as the server should. On Linux the kernel kills the server when that
    thread ends, for any reason, so that a killed program leaves nothing running. Elsewhere only `close` stops it.
    """

    name: str
    stop_signal: signal.Signals = signal.SIGTERM
    # The signal that the kernel sends to the server if we die without stopping it.
    orphan_signal: signal.Signals = signal.SIGKILL
    start_timeout: float = 60
    stop_timeout: float = 20

    def __init__(self, *, port: int | None = None) -> None:
        """Without `port` the first start picks a free one, and later starts keep it."""
        self._port = port
        self._port_is_ours = port is None
        self._process: subprocess.Popen[bytes] | None = None
        self._home = tempfile.TemporaryDirectory(
            prefix=f"cdc-{self.name}-", dir=_temporary_root(), ignore_cleanup_errors=True
        )
        self.home = Path(self._home.name)
        self.data_dir = self.home / "data"
        self.log_path = self.home / "log"

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command that runs the server in the foreground, with an absolute path."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether it serves clients; called repeatedly while it starts."""

    def _prepare(self) -> None:
        """Create `data_dir`, which does not exist yet."""
        self.data_dir.mkdir()

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _owner(self) -> tuple[int, int] | None:
        """Return the user and group to run as, or None for our own."""
        return None

    @property
    def port(self) -> int:
        if self._port is None:
            self._port = free_port()
        return self._port

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything that the server has logged, over restarts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> Self:
        """Start the server, and return when it serves clients; do nothing if it already runs."""
        if self.running:
            return self
        if not self.data_dir.exists():
            self._prepare()
        deadline = time.monotonic() + self.start_timeout
        while not self._launch_and_wait(deadline):
            if not self._may_try_again() or time.monotonic() > deadline:
                raise self._failure()
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """Stop the server, with SIGKILL after `stop_timeout` seconds; keep its data for the next start."""
        self._end(self.stop_signal, self.stop_timeout)

    def kill(self) -> None:
        """Kill the server, like a crash."""
        self._end(signal.SIGKILL, self.stop_timeout)

    def restart(self, *, keep_data: bool = True) -> Self:
        """Stop and start on the same port, with its data or without."""
        self.stop()
        if not keep_data:
            self.wipe()
        return self.start()

    def wipe(self) -> None:
        """Delete a stopped server's data."""
        if self.running:
            raise ServerError(f"{self.name} is running: stop it before its data are deleted")
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def close(self) -> None:
        """Stop the server, and remove its directory."""
        self.stop()
        self._home.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _launch_and_wait(self, deadline: float) -> bool:
        """Start a process, and return whether it serves clients; if it does not, kill it."""
        process = self._launch()
        while process.poll() is None and time.monotonic() < deadline:
            if self._is_ready():
                return process.poll() is None
            time.sleep(0.02)
        self._end(signal.SIGKILL, self.stop_timeout)
        return False

    def _launch(self) -> subprocess.Popen[bytes]:
        uid, gid = self._owner() or (-1, -1)
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
        identity = [str(number) for number in (os.getpid(), int(self.orphan_signal), uid, gid)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *identity, *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C goes to the program that started it, which stops its servers in order
            )
        return self._process

    def _may_try_again(self) -> bool:
        """Return whether another start may succeed; pick another port if ours was taken."""
        if self._port_is_ours and "address already in use" in self._log_end().lower():
            self._port = free_port()
            return True
        return False

    def _end(self, first_signal: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(first_signal)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _log_end(self) -> str:
        return "\n".join(self.log.splitlines()[-_LOG_LINES_SHOWN:])

    def _failure(self) -> ServerError:
        return ServerError(
            f"{self.name} did not start on 127.0.0.1:{self.port}",
            hint=f"the end of its log:\n{self._log_end() or '(nothing)'}",
        )


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    for port in random.sample(_PORTS, k=200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port on 127.0.0.1 between 20000 and 32000")


def _temporary_root() -> str:
    """Return a directory that other users can enter: as root, servers run as another user."""
    chosen = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in (chosen, *chosen.parents)):
        return "/tmp"  # noqa: S108 - only the parent of our own directory
    return str(chosen)
