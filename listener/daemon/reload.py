"""New routes without a stop: try them in a separate process, then run this program again in the same process.

Python cannot reload changed modules without keeping parts of the old ones. So the listener stops after a batch and
calls `exec`: the process id stays, all code is loaded again, and reading continues at the checkpoint. Before that,
`check` runs with the new code in another process. If it finds a problem, the old routes stay in force.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final

from cdc_tasks.errors import CDCError

__all__ = ["ReloadError", "Reloading", "run_again"]

_LOOK_EVERY: Final = 1.0  # seconds between two checks of the files
_ONLY_ONCE: Final = {"--accept-gap", "--from-start"}  # requested for the first start only
_LONGEST: Final = 120.0  # seconds for the trial


class ReloadError(CDCError):
    """The new routes cannot be used; the old ones stay in force."""


class Reloading:
    """Tries new routes in another process, and notes when the listener should restart."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] = _nothing  # stops the listener after its batch
        self._trial: subprocess.Popen[bytes] | None = None
        self._output: Any = None
        self._started_at = 0.0
        self._is_asked = False
        self._watched: _Files | None = None
        self.is_wanted = False  # the listener has stopped in order to restart

    def watch_files(self) -> None:
        """Also request a reload if a file of the user's loaded modules changes."""
        self._watched = _Files()

    def ask(self) -> None:
        """Request a reload; may be called from a signal handler."""
        self._is_asked = True

    @property
    def is_due(self) -> bool:
        """Whether a signal or a changed file requests a reload; True once for each."""
        asked, self._is_asked = self._is_asked, False
        return asked or (self._watched is not None and self._watched.have_changed())

    def start(self) -> None:
        """Start to try the routes as they are now; do not wait."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `result`
        self._started_at = monotonic()
        self._trial = subprocess.Popen(
            [*_program(), "check", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )

    def result(self) -> CDCError | str | None:
        """Return None while the trial runs, then an error, or a text about the routes that will be in force."""
        if self._trial is None:
            return ReloadError("No routes are being tried.")
        if self._trial.poll() is None:
            if monotonic() - self._started_at < _LONGEST:
                return None
            self._trial.kill()
            self._trial.wait()
        status, self._trial = self._trial.returncode, None
        with self._output as output:
            output.seek(0)
            return _judged(status, output.read().decode(errors="replace"))

    def reload(self) -> None:
        """Stop the listener, so that `run_again` follows."""
        self.is_wanted = True
        self.stop()


def _nothing() -> None:
    pass


def _judged(status: int, output: str) -> CDCError | str:
    """Return the result of `check --json`, as an error or a text."""
    try:
        found = json.loads(output)
    except ValueError:
        last = output.strip().splitlines()[-1:] or [f"it ended with status {status}"]
        return ReloadError(f"The new routes cannot be loaded: {last[0]}", code="reload_refused")
    if "findings" not in found:
        return ReloadError(
            f"The new routes cannot be loaded: {found.get('message')}",
            hint=found.get("hint"),
            code="reload_refused",
        )
    problems = [each for each in found.get("findings", ()) if each["state"] == "problem"]
    if problems:
        first = problems[0]
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        return ReloadError(
            f"check finds a problem: {first['what']}: {first['found']}{more}",
            hint=first.get("hint") or "See all of them: python -m listener check",
            code="reload_refused",
        )
    if status:
        return ReloadError(f"check ended with status {status}.", code="reload_refused")
    return "The routes are reloaded."


def _program() -> list[str]:
    """Return the command that started this program, without its own arguments."""
    words = sys.orig_argv
    return [sys.executable, *words[1 : len(words) - len(sys.argv) + 1], *_before_command()]


def _before_command() -> list[str]:
    """Return the options before the command, such as `-A shop`."""
    arguments = sys.argv[1:]
    return arguments[: arguments.index("run")] if "run" in arguments else arguments


def run_again() -> None:
    """Run this program again in the same process. Does not return."""
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # until the new program handles it; by default it would end the program
    words = [sys.executable, *sys.orig_argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [word for word in words if word not in _ONLY_ONCE])  # noqa: S606 - no shell is meant


class _Files:
    """The files of the user's own modules: loaded, and not from an installed package."""

    def __init__(self) -> None:
        self._times = dict(_user_files())
        self._changing: dict[Path, float] | None = None
        self._looked_at = monotonic()

    def have_changed(self) -> bool:
        """Return whether a file has changed, and has not changed again between two checks."""
        if monotonic() - self._looked_at < _LOOK_EVERY:
            return False
        self._looked_at = monotonic()
        times = {path: _changed_at(path) for path in self._times}
        if times == self._times:
            self._changing = None
            return False
        if times != self._changing:  # perhaps still being written
            self._changing = times
            return False
        self._times, self._changing = times, None
        return True


def _user_files() -> Iterator[tuple[Path, float]]:
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    ours = tuple(str(Path(__file__).parents[2] / name) + os.sep for name in ("cdc_tasks", "listener"))
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and not file.startswith((*installed, *ours)):
            yield Path(file), _changed_at(Path(file))


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
