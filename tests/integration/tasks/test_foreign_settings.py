"""Settings of other applications: another one's `celeryconfig.py`, and Flower started in any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery.concurrency import get_implementation

from cdc_tasks.config.required_settings import UnfitPoolError, check_pool
from harness.server_process import free_port
from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]
_CELERY = (sys.executable, "-m", "celery", "-A", "cdc_tasks")


@pytest.fixture
def elsewhere(helpdesk: HelpDesk, tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path, {**os.environ, **helpdesk.environment, "PYTHONPATH": str(_CHECKOUT)})


class Elsewhere:
    """A directory outside the checkout, with the packages installed."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        """Link the packages into a site-packages directory, without the checkout's celeryconfig.py, as in a wheel."""
        self.directory = directory
        packages = directory / "site-packages"
        packages.mkdir()
        for name in ("cdc_tasks", "listener"):
            (packages / name).symlink_to(_CHECKOUT / name)
        self.environment = {**environment, "PYTHONPATH": str(packages), "CDC_LOG_FORMAT": "json"}
        self._log = directory / "log"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self, *command: str, **more: str) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*_CELERY, *command],
                cwd=self.directory,
                env={**self.environment, **more},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run_worker(self, **more: str) -> str:
        """Start a worker until it is ready, and return its log."""
        process = self.start("worker", "-c1", "--without-mingle", "--loglevel=info", **more)
        try:
            wait_until(
                lambda: " ready." in self.log or process.poll() is not None, timeout=60, what="the worker"
            )
        finally:
            process.terminate()
            process.wait(at_most(60))
        return self.log


@pytest.fixture
def flower_port() -> int:
    return free_port()


@pytest.fixture
def flower(elsewhere: Elsewhere, flower_port: int) -> Iterator[str]:
    process = elsewhere.start("flower", f"--port={flower_port}")
    url = f"http://127.0.0.1:{flower_port}"
    try:
        wait_until(lambda: _status(f"{url}/healthcheck") == 200, timeout=60, what="Flower")
        yield url
    finally:
        process.terminate()
        process.wait(at_most(60))


def _status(url: str, *, host: str | None = None) -> int | None:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def test_a_foreign_celeryconfig_does_not_replace_ours(elsewhere: Elsewhere) -> None:
    (elsewhere.directory / "celeryconfig.py").write_text(
        "task_acks_late = False\nraise SystemExit('imported')\n"
    )
    log = elsewhere.run_worker()
    assert " ready." in log
    assert "celeryconfig_not_used" in log
    assert "settings_weaken_guarantees" not in log


def test_a_celeryconfig_that_starts_from_ours_is_used(elsewhere: Elsewhere) -> None:
    (elsewhere.directory / "celeryconfig.py").write_text(
        "from cdc_tasks.config.celery import *\nworker_direct = True\n"
    )
    log = elsewhere.run_worker()
    assert ".dq" in log
    assert "celeryconfig_not_used" not in log


def test_settings_that_weaken_the_guarantees_are_logged_at_the_start(elsewhere: Elsewhere) -> None:
    (elsewhere.directory / "mine.py").write_text(
        "import os\nbroker_url = os.environ['CELERY_BROKER_URL']\n"
        "task_acks_late = task_reject_on_worker_lost = False\n"
        "worker_consumer = 'celery.worker.consumer:Consumer'\n"
        "accept_content = ['json', 'yaml']\n"
    )
    log = elsewhere.run_worker(CELERY_CONFIG_MODULE="mine")
    (line,) = [each for each in log.splitlines() if "settings_weaken_guarantees" in each]
    for word in ("task_acks_late", "task_reject_on_worker_lost", "accept_content", "worker_consumer"):
        assert word in line
    assert '"level": "error"' in line


def test_a_result_backend_of_another_application_is_not_used(elsewhere: Elsewhere) -> None:
    log = elsewhere.run_worker(CELERY_RESULT_BACKEND="django-db")
    assert " ready." in log
    assert "result_backend_not_used" in log
    assert "Traceback" not in log


def test_flower_listens_on_this_machine_only_in_any_directory(flower: str, flower_port: int) -> None:
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    places = [
        line.split()[1] for line in listening.splitlines() if f":{flower_port:04X} " in line.split("  ")[0]
    ]
    assert {place.split(":")[0] for place in places if place.endswith(f":{flower_port:04X}")} <= {"0100007F"}
    with urllib.request.urlopen(f"{flower}/metrics", timeout=20) as answer:
        assert b"cdc_dead_letters" in answer.read()


def test_flower_without_a_password_accepts_its_own_host_names_only(flower: str, flower_port: int) -> None:
    assert _status(f"{flower}/workers") == 200
    assert _status(f"{flower}/workers", host=f"localhost:{flower_port}") == 200
    assert _status(f"{flower}/workers", host="rebound.example.com") == 403
    assert _status(f"{flower}/api/workers", host="rebound.example.com:5555") == 403


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_flower_does_not_start_open_to_the_network(
    elsewhere: Elsewhere, flower_port: int, address: str
) -> None:
    process = elsewhere.start("flower", f"--port={flower_port}", f"--address={address}")
    assert process.wait(at_most(60)) == 1
    assert "FLOWER_BASIC_AUTH=user:password" in elsewhere.log
    assert "Traceback" not in elsewhere.log


def test_flower_with_a_password_may_be_open(elsewhere: Elsewhere, flower_port: int) -> None:
    process = elsewhere.start(
        "flower", f"--port={flower_port}", "--address=0.0.0.0", FLOWER_BASIC_AUTH="anna:secret"
    )
    try:
        url = f"http://127.0.0.1:{flower_port}/workers"
        wait_until(lambda: _status(url) == 401, timeout=60, what="Flower to ask for the password")
        assert _status(url, host="flower.example.com") == 401
    finally:
        process.terminate()
        process.wait(at_most(60))


def test_a_flower_behind_a_proxy_can_have_more_host_names(elsewhere: Elsewhere, flower_port: int) -> None:
    process = elsewhere.start(
        "flower", f"--port={flower_port}", CDC_FLOWER_HOSTS="flower.example.com, tasks.example.com"
    )
    try:
        url = f"http://127.0.0.1:{flower_port}/workers"
        wait_until(lambda: _status(url) == 200, timeout=60, what="Flower")
        assert _status(url, host="tasks.example.com") == 200
        assert _status(url, host="other.example.com") == 403
    finally:
        process.terminate()
        process.wait(at_most(60))


def test_a_pool_without_the_guarantees_is_refused_with_a_hint(elsewhere: Elsewhere) -> None:
    process = elsewhere.start("worker", "-c1", "--pool=threads")
    assert process.wait(at_most(60)) == 1
    assert "--pool=prefork" in elsewhere.log
    assert "Traceback" not in elsewhere.log


@pytest.mark.parametrize("module", ["thread", "gevent", "eventlet"])
def test_the_pools_that_are_refused(module: str) -> None:
    with pytest.raises(UnfitPoolError, match=f"The pool {module} is refused"):
        check_pool(type("TaskPool", (), {"__module__": f"celery.concurrency.{module}"}))


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_the_pools_that_are_not(pool: str) -> None:
    check_pool(get_implementation(pool))
