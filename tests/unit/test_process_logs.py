"""A test that fails shows the ends of the logs of its workers and listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from harness import process_logs
from harness.process_logs import ends_of_logs, forget_ended, log_of
from tests.support.sessions import LogsOfFailures

if TYPE_CHECKING:
    import pytest


class _Report:
    def __init__(self, *, failed: bool) -> None:
        self.failed = failed
        self.sections: list[tuple[str, str]] = []


def _told(*, failed: bool) -> list[tuple[str, str]]:
    report: Any = _Report(failed=failed)
    hook = LogsOfFailures().pytest_runtest_makereport()
    next(hook)
    try:
        hook.send(report)
    except StopIteration as end:
        return cast("_Report", end.value).sections
    raise AssertionError("it goes on")


def test_a_failure_shows_those_that_run_and_those_that_ended_in_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_logs, "_running", {})
    forget_ended()
    lines = ["first"]
    ended = log_of("worker", 7, lambda: "\n".join(lines))
    log_of("listener", 8, lambda: "reads")
    lines += [f"line {number}" for number in range(100)]
    assert _told(failed=False) == []
    (_, running), listener = _told(failed=True)
    assert running.splitlines()[-1] == "line 99"
    assert listener == ("log of listener 8", "reads")
    ended()
    lines.clear()  # the log is deleted
    assert [name for name, end in ends_of_logs() if end] == ["worker 7", "listener 8"]
    forget_ended()  # the next test
    assert [name for name, _ in ends_of_logs()] == ["listener 8"]
