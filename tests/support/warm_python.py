"""Runs `python -m celery …` and our commands without most imports: forks of an interpreter with loaded packages.

A worker's start takes 1.5 s of processor time, mostly for imports. The fork has the same environment, working directory
and arguments, and imports all of our modules itself.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from harness.listener_process import mortal
from harness.waiting import at_most

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["WARM", "WarmProcess", "WarmPython"]

_NURSERY = Path(__file__).with_name("warm_python_nursery.py")
_AS_AT_THE_START: Final = ("PYTHON", "LD_", "LC_", "LANG", "TZ")  # what an interpreter reads when it starts


class WarmProcess:
    """Like `subprocess.Popen`, for a process that is not our own child."""

    def __init__(self, reports: socket.socket) -> None:
        self._reports = reports
        self._unread = b""
        self.returncode: int | None = None
        self.pid = int(self._line(at_most(30)) or 0)
        assert self.pid, "the interpreter that forks has ended"

    def poll(self) -> int | None:
        """Return the exit status as `subprocess` has it, None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired."""
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and (line := self._line(timeout)) is not None:
            # If the process that waits for it was killed, the status is unknown.
            self.returncode = int(line) if line else -signal.SIGKILL
            self._reports.close()
        return self.returncode

    def _line(self, timeout: float | None) -> str | None:
        """Return the next report, "" at the end, None if there is none yet."""
        while b"\n" not in self._unread:
            if not select.select([self._reports], [], [], timeout)[0]:
                return None
            if not (data := self._reports.recv(100)):
                return ""
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


class WarmPython:
    """Starts the interpreter on first use; it ends with this process."""

    def __init__(self) -> None:
        self._nursery: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdout: IO[Any], **options: Any
    ) -> Any:
        """Start `python -m …` like `subprocess.Popen`, which is used for everything that a fork cannot do."""
        if self._can(command, env):
            return self._fork(command, env, cwd, (None, stdout, stdout))
        return subprocess.Popen(command, env=env, cwd=cwd, stdout=stdout, **options)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        input: str = "",  # noqa: A002  # as `subprocess` has it
        timeout: float | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m …` like `subprocess.run`, with its output captured as text."""
        if not self._can(command, env):
            return subprocess.run(
                command,
                env=env,
                cwd=cwd,
                input=input,
                timeout=timeout,
                check=check,
                capture_output=True,
                text=True,
            )
        with TemporaryFile("w+") as given, TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
            given.write(input)
            given.seek(0)
            process = self._fork(command, env, cwd or Path.cwd(), (given, output, errors))
            try:
                status = process.wait(timeout)
            finally:
                process.kill()
            output.seek(0)
            errors.seek(0)
            done = subprocess.CompletedProcess(command, status, output.read(), errors.read())
        if check:
            done.check_returncode()
        return done

    def close(self) -> None:
        if self._nursery is not None and self._requests is not None:
            self._requests.close()
            self._nursery.wait(at_most(10))
            self._nursery = None

    def _can(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        changed = {name for name in {*env, *os.environ} if env.get(name) != os.environ.get(name)}
        return (
            command[0] == sys.executable
            and (command[1] == "-m" or list(command[1:4:2]) == ["-W", "-m"])
            and not any(name.startswith(_AS_AT_THE_START) for name in changed - {"PYTHONUNBUFFERED"})
            # Another pool patches modules before they are loaded.
            and not any(word.startswith(("-P", "--pool")) for word in command)
            # The nursery ends with the thread that starts it.
            and threading.current_thread() is threading.main_thread()
        )

    def _fork(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, streams: Sequence[IO[Any] | None]
    ) -> WarmProcess:
        ours, theirs = socket.socketpair()
        request = json.dumps({"command": command, "environment": dict(env), "directory": str(cwd)}).encode()
        with theirs, Path(os.devnull).open() as nothing:
            descriptors = array.array("i", [(stream or nothing).fileno() for stream in streams])
            descriptors.append(theirs.fileno())
            self._to_nursery().sendmsg(
                [request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())]
            )
        return WarmProcess(ours)

    def _to_nursery(self) -> socket.socket:
        if self._nursery is None or self._requests is None:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._nursery = subprocess.Popen(
                    mortal([sys.executable, str(_NURSERY), str(theirs.fileno())]),
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        return self._requests


WARM: Final = WarmPython()
