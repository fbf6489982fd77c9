"""The wheel with only the core's dependencies: what works, and which sentence names the extra for the rest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import wait_until
from tests.support.wheel import build, environment_with, site_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database

_THEIRS = {
    "shop.py": """
from celery import Celery
import cdc_tasks
import tests, demo, celeryconfig

app = Celery("shop", broker="{broker}")
cdc_tasks.install(app)

@app.task(name="shop.note")
def note(change):
    with open("noted", "a") as file:
        print(change["after"]["name"], tests.NAME, demo.NAME, celeryconfig.broker_url, file=file)
""",
    "shop_routes.py": """
from cdc_tasks import BinlogRouter, EventType
from listener.orders import TABLE
import tests, demo

def setup_router(schema="public"):
    router = BinlogRouter()
    router.register(schema, TABLE, [EventType.INSERT], "shop.note")
    return router
""",
    "listener/__init__.py": "",
    "listener/orders.py": 'TABLE = "orders"',
    "tests/__init__.py": 'NAME = "their-tests"',
    "demo/__init__.py": 'NAME = "their-demo"',
    "celeryconfig.py": 'broker_url = "theirs"',
}
_NOT_IN_THE_CORE = """
import importlib, pkgutil, sys
failed = []
for package in ("cdc_tasks", "listener"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if found.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            failed.append(found.name)
print(*failed)
"""
_EXTRA_ROOMS = (
    "cdc_tasks.db",
    "cdc_tasks.django",
    "cdc_tasks.helpdesk",
    "cdc_tasks.master_cache",
    "cdc_tasks.notify",
    "cdc_tasks.pytest_plugin",
    "cdc_tasks.worker.metrics",
    "listener.console",
    "listener.daemon.bookmarked_monitor",
    "listener.daemon.mysql_parts",
    "listener.metrics.collector",
    "listener.metrics.server",
    "listener.mysql",
)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the core alone."""
    wheel = build(tmp_path_factory.mktemp("wheel"))
    return environment_with(wheel, wheel.parent / "venv", extras=())


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Path:
    """Return the directory of an application whose packages have names that we have in our checkout."""
    for name, text in _THEIRS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("{broker}", broker.url))
    return tmp_path


class Program:
    """Runs programs of the environment in the application's directory."""

    def __init__(self, core: Path, project: Path, **variables: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment = {**inherited, **variables}
        self._bin, self._project = core.parent, project

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._bin / name, *arguments],
            cwd=self._project,
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._project / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [self._bin / name, *arguments],
                cwd=self._project,
                env=self._environment,
                stdout=log,
                stderr=log,
            )


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Give a list of programs that are ended after the test."""
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for each in found:
        each.terminate()
    for each in found:
        each.wait(60)


def test_every_module_of_the_core_can_be_imported_without_an_extra(core: Path, tmp_path: Path) -> None:
    lacking = subprocess.run(
        [core, "-c", _NOT_IN_THE_CORE], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert [name for name in lacking if not name.startswith(_EXTRA_ROOMS)] == []
    assert lacking  # else the environment has more than the core
    present = {path.name.lower() for path in site_of(core).iterdir()}
    assert present & {"sqlalchemy", "pymysql", "slack_sdk", "flower", "cryptography", "zstandard"} == set()


def test_an_applications_task_runs_for_a_row_beside_its_own_listener_tests_demo_and_celeryconfig(
    core: Path, project: Path, database: Database, broker: Broker, running: list[subprocess.Popen[bytes]]
) -> None:
    program = Program(
        core,
        project,
        DATABASE_URL=database.url,
        CELERY_BROKER_URL=broker.url,
        CDC_CACHE_URL=broker.url,
        CDC_ROUTES="shop_routes:setup_router",
        CDC_NAME="core",
        PYTHONPATH=str(project),  # as many a container has it: their package `listener` comes before ours
    )
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, name text)")
    assert "Usage: " in program.run("cdc-listener", "--help").stdout
    assert "dead-letters" in program.run("cdc-tasks", "--help").stdout
    checked = json.loads(program.run("cdc-listener", "check", "--json").stdout)
    assert [each for each in checked["findings"] if "extra" in each["code"]] == []

    running.append(program.start("cdc-listener", "run"))
    running.append(program.start("celery", "-A", "shop", "worker", "--pool", "solo", "--without-mingle"))
    log = project / "cdc-listener.log"
    wait_until(
        lambda: "reading" in log.read_text() or "streaming" in log.read_text(), what="the listener to read"
    )
    database.execute("INSERT INTO orders VALUES (1, 'Anna')")
    noted = project / "noted"
    wait_until(noted.exists, what="the task")
    assert noted.read_text() == "Anna their-tests their-demo theirs\n"


def test_mysql_the_help_desk_and_the_master_cache_say_which_extra_they_need(
    core: Path, project: Path, broker: Broker
) -> None:
    program = Program(
        core,
        project,
        DATABASE_URL="mysql://root:secret@127.0.0.1:1/shop",
        CELERY_BROKER_URL=broker.url,
        CACHE_URL=broker.url,
        CDC_ROUTES="shop_routes:setup_router",
        CDC_LOG_FORMAT="json",
    )
    (finding,) = _problems(program.run("cdc-listener", "check", "--json"), "missing_extra")
    assert finding["hint"] == 'pip install "cdc-tasks[mysql]"'
    assert "pymysql" in finding["found"]
    ran = program.run("cdc-listener", "run")
    assert ran.returncode == 1
    assert '"missing_extra"' in ran.stdout + ran.stderr
    for program_name, *arguments in (
        ("cdc-listener", "status"),
        ("cdc-tasks", "accounts"),
        ("cdc-tasks", "schema"),
        ("celery", "-A", "cdc_tasks", "worker"),
    ):
        told = program.run(program_name, *arguments)
        extra = "mysql" if program_name == "cdc-listener" else "helpdesk"
        assert told.returncode
        assert f'pip install "cdc-tasks[{extra}]"' in told.stderr, told.stderr
        assert "Traceback" not in told.stderr


def _problems(ran: subprocess.CompletedProcess[str], code: str) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = json.loads(ran.stdout)["findings"]
    return [each for each in findings if each["code"] == code]
