"""Where a worker's log goes, and what neither the log nor a worker's reports on tasks contain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cdc_tasks.celery import app
from harness.waiting import at_most, wait_until
from harness.worker import Worker
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub

_CHECKOUT = Path(__file__).resolve().parents[3]
_CELERY = (sys.executable, "-m", "celery")
_TITLE = "Project X"


@pytest.fixture
def environment(helpdesk: HelpDesk, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a worker with JSON logs and its own home directory."""
    return {**os.environ, **helpdesk.environment, "CDC_LOG_FORMAT": "json", "HOME": str(tmp_path)}


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return WARM.run([*_CELERY, *arguments], cwd=_CHECKOUT, env=environment, timeout=at_most(60))


@pytest.fixture(params=["--detach", "celery multi"])
def daemon(request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """Start a worker as a daemon, and return its log file."""
    log, pid_file = tmp_path / "worker.log", tmp_path / "worker.pid"
    files = (f"--logfile={log}", f"--pidfile={pid_file}", "-c1", "--without-mingle", "--loglevel=info")
    if request.param == "--detach":
        started = _run(environment, "-A", "cdc_tasks", "worker", "--detach", *files)
    else:
        started = _run(environment, "multi", "start", "w1", "-A", "cdc_tasks", *files)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield log
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_until(lambda: not pid_file.exists(), timeout=60, what="the daemon to end")


def test_a_daemon_logs_to_its_file(daemon: Path, helpdesk: HelpDesk) -> None:
    wait_until(lambda: daemon.exists() and " ready." in daemon.read_text(), timeout=60, what="the daemon")
    helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
    lines = wait_until(
        lambda: [json.loads(each) for each in daemon.read_text().splitlines() if "succeeded in" in each],
        timeout=60,
        what="the task's line, which a child process writes",
    )
    assert lines[0]["level"] == "info"


def test_a_log_file_that_was_moved_away_is_opened_again(helpdesk: HelpDesk, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"

    def run_a_task() -> None:
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))

    with Worker(helpdesk.environment, log_file=log):
        run_a_task()
        wait_until(lambda: "succeeded in" in log.read_text(), timeout=60, what="the first task's line")
        log.rename(tmp_path / "worker.log.1")
        run_a_task()
        wait_until(
            lambda: log.exists() and "succeeded in" in log.read_text(),
            timeout=60,
            what="the next task's line",
        )


def test_the_debug_level_logs_no_message_no_webhook_and_no_row(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA", "xoxb-the-token")
    helpdesk.connect_teams(helpdesk.ANNA, "anna")
    with Worker(helpdesk.environment, "--loglevel", "debug") as worker:
        helpdesk.send(
            "cdc_tasks.notify_ticket_insert",
            helpdesk.insert_ticket(title=_TITLE, assigned_to_id=helpdesk.ANNA),
        )
        wait_until(lambda: len(social.posted) == 2, timeout=60, what="both messages")
        worker.stop()
        log = worker.log
    assert '"level": "debug"' in log
    assert [words for words in ("the-secret-part", "xoxb-the-token", _TITLE) if words in log] == []


def test_a_workers_reports_on_its_tasks_contain_no_row(helpdesk: HelpDesk) -> None:
    change: Any = helpdesk.insert_ticket(title=_TITLE, assigned_to_id=helpdesk.ANNA)
    app.conf.broker_url = helpdesk.broker.url
    with Worker(helpdesk.environment):
        helpdesk.send("cdc_tasks.notify_ticket_insert", change, countdown=50)

        def scheduled() -> list[Any]:
            found = app.control.inspect(timeout=5).scheduled() or {}
            return [each["request"] for requests in found.values() for each in requests]

        (request,) = wait_until(scheduled, timeout=60, what="the task to wait")
        assert _TITLE not in json.dumps(request)
        assert "insert of public.tickets" in request["args"]
