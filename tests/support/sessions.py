"""The output of a test run while it runs, and its temporary directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.process_logs import ends_of_logs, forget_ended
from tests.support.forked_workers import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["FailuresAtOnce", "LogsOfFailures", "use_own_temporary_directory"]

_PREFIX: Final = "cdc-tests-"


class FailuresAtOnce:
    """Prints a line for each test when it fails: a long run shows the details only at its end."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)  # after its letter
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            where = "" if report.when == "call" else f" ({report.when})"
            self._terminal.write_line(f"\nFAILED {report.nodeid}{where}: {_reason(report)}", red=True)
            self._terminal.flush()


class LogsOfFailures:
    """Adds the ends of the workers' and listeners' logs to the report of a test that fails."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        forget_ended()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            report.sections.extend((f"log of {name}", end) for name, end in ends_of_logs())
        return report


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr).strip().splitlines()
    return lines[0][:200] if lines else ""


def use_own_temporary_directory() -> Callable[[], None]:
    """Use a new directory for the temporary files of this process and its children; return a function to delete it.

    A worker or server that is killed leaves files there. If this process is killed, the next run deletes them. The
    processes of pytest-xdist use the directory of their parent.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return lambda: None
    root = Path(tempfile.gettempdir())
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(root))  # pytest keeps the last three of its own
    _delete_of_dead_processes(root)
    given = os.environ.get("TMPDIR")
    own = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root)
    Path(own).chmod(0o755)  # servers that root starts run as another user
    tempfile.tempdir = os.environ["TMPDIR"] = own

    def delete() -> None:
        tempfile.tempdir = None
        if given is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = given
        shutil.rmtree(own, ignore_errors=True)

    return delete


def _delete_of_dead_processes(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
