"""The programs of an example, as its Procfile has them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.server_process import ServerError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RELEASE", "Program", "procfile", "run"]

RELEASE: Final = "release"  # the line of a Procfile that is run to its end before the others are started
_READY: Final = {"worker": " ready.", "listener": "streaming"}  # others are ready when their port is open
_LINES_SHOWN: Final = 20


def procfile(directory: Path) -> dict[str, str]:
    """Return the command of each line of the directory's Procfile, by name."""
    lines = (directory / "Procfile").read_text().splitlines()
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name: command.strip() for name, _, command in pairs}


class Program(ServerProcess):
    """A line of a Procfile. `launch` returns at once and `wait` comes later, so that several start in parallel."""

    start_timeout = 180  # seconds; only against what hangs
    stop_timeout = 30

    def __init__(self, name: str, line: str, directory: Path) -> None:
        self.name = name
        super().__init__()
        self.home = directory  # where it runs; its log stays in the temporary directory
        self.line = line
        self.environment: Mapping[str, str] = {}
        self._log_start = 0  # where this run begins in the log

    @property
    def listens(self) -> bool:
        """Whether it has an address."""
        return "$PORT" in self.line

    @property
    def url(self) -> str:
        """Its address, if it listens."""
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Start the program, and return at once."""
        self._log_start = len(self.log)
        self._launch()

    def wait(self) -> None:
        """Return when it is ready; raises ServerError if it ends before, or takes too long."""
        deadline = time.monotonic() + self.start_timeout
        while not self._is_ready():
            if not self.running or time.monotonic() > deadline:
                raise ServerError(f"the {self.name} did not start: {self.line}", hint=self.log_end)
            time.sleep(0.02)

    def check(self) -> None:
        """Raise ServerError if it has ended."""
        if not self.running:
            raise ServerError(f"the {self.name} has ended by itself", hint=self.log_end)

    @property
    def log_end(self) -> str:
        """The last lines of its log, for an error's text."""
        lines = self.log.splitlines()[-_LINES_SHOWN:]
        return "\n    ".join([f"the end of its log, {self.name}:", *lines])

    def _command(self) -> list[str]:
        return _words(self.line, self._environment())

    def _environment(self) -> dict[str, str]:
        return {**self.environment, "PORT": str(self.port)} if self.listens else dict(self.environment)

    def _is_ready(self) -> bool:
        if self.name in _READY:
            return _READY[self.name] in self.log[self._log_start :]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def run(line: str, directory: Path, environment: Mapping[str, str]) -> str:
    """Run a command to its end, and return what it printed; raises ServerError with that if it fails."""
    done = subprocess.run(
        _words(line, environment),
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServerError(f"failed: {line}", hint=done.stdout.strip())
    return done.stdout.strip()


def _words(line: str, environment: Mapping[str, str]) -> list[str]:
    """Return the words of a command with their variables filled in, the first one with its path."""
    words = [_filled(word, environment) for word in shlex.split(line)]
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    program = shutil.which(words[0], path=path)
    if program is None:
        raise ServerError(f"there is no program {words[0]}", hint=f"it is needed for: {line}")
    return [program, *words[1:]]


def _filled(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda name: environment[name[1]], word)
