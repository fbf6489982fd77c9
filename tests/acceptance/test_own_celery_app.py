"""The pages on the own Celery app and on the light way, line by line, on real servers, from the wheel.

CDC_TEST_PYTHON names the interpreter of another environment that has the project, with another Celery: the page's
commands are run there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conftest import Broker, Database

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([\w/]+\.py)`")
_COMMAND = re.compile(r"^\$ (.*)$", re.MULTILINE)
_TABLE = """
CREATE TABLE orders (id bigint PRIMARY KEY, status text NOT NULL);
ALTER TABLE orders REPLICA IDENTITY FULL;
INSERT INTO orders VALUES (1, 'new'), (2, 'new');
"""


@pytest.fixture
def page(installed_python: Path, tmp_path: Path, database: Database, broker: Broker) -> Iterator[Page]:
    database.execute(_TABLE)
    with Page(installed_python, tmp_path, {"SHOP_BROKER": broker.url}) as running:
        running.given = {
            "postgresql://user:password@localhost:5432/shop": database.url,
            "redis://localhost:6379/0": broker.url,
            "redis://localhost:6379/1": broker.cache_url,
        }
        # Names of the server's own: other tests use it, too.
        running.environment["CDC_NAME"] = database.name
        yield running


class Page:
    """Somebody who follows a page: files are written, `export` is kept, and programs go on until the end."""

    given: Mapping[str, str]  # what stands on the page, and what the reader has instead

    def __init__(self, python: Path, home: Path, more: Mapping[str, str]) -> None:
        self.home = home
        strangers = {name for name in os.environ if name.startswith(("CDC_", "CELERY_"))}
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in {*strangers, "PYTHONPATH", "DATABASE_URL", "CACHE_URL"}
        }
        path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
        self.environment = {**inherited, **more, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.python = python
        self.typed: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, name: str) -> None:
        """Write the page's files, and run its commands; each is counted."""
        text = (_DOCS / name).read_text().partition("\n## What")[0]
        for block in _PYTHON.finditer(text):
            *_, path = _NAME.findall(text[: block.start()])  # the file that was named last
            content, file = block[1], self.home / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
            if file.parent != self.home:
                (file.parent / "__init__.py").write_text("from .celery import app\n")
        for line in _COMMAND.findall(text):
            self._type(line)

    def _type(self, line: str) -> None:
        for shown, real in self.given.items():
            line = line.replace(shown, real)
        words = shlex.split(line.replace("listener-env/bin/", ""))
        if "pip" in words[0] or words[:3] == ["python", "-m", "venv"]:
            return  # the environment is made from the wheel
        self.typed.append(line)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.environment[name] = value
        elif words[-1] == "run" or "worker" in words:
            self.start(words, "streaming" if words[-1] == "run" else " ready.")
        else:
            self.ask(*words)

    def ask(self, *words: str) -> str:
        """Run a command to its end; it has to succeed."""
        done = subprocess.run(
            self._command(words),
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=at_most(120),
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, words: list[str], ready: str) -> None:
        """Start a program that goes on, and wait until it is ready."""
        log = self.home / ("worker.log" if "worker" in words else "listener.log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command(words),
                cwd=self.home,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._stack.callback(_end, process)
        wait_until(
            lambda: ready in log.read_text() or process.poll() is not None,
            timeout=60,
            what=f"{words} to be ready",
        )
        assert process.poll() is None, log.read_text()

    def _command(self, words: tuple[str, ...] | list[str]) -> list[str]:
        program, *arguments = words
        if program == "celery":
            return [str(self.python), "-m", "celery", *arguments, *(["-c1"] if "worker" in arguments else [])]
        return [str(self.python), *arguments]

    @property
    def log(self) -> str:
        return "\n".join(file.read_text() for file in self.home.glob("*.log"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(at_most(30))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _findings(page: Page, *more: str) -> dict[str, Any]:
    told = page.ask("python", "-m", "listener", *more, "check", "--json")
    return {each["code"]: each for each in json.loads(told)["findings"]}


@pytest.mark.oldest
def test_the_page_on_the_own_app_ends_in_the_own_task_that_ran_because_of_an_update(
    page: Page, database: Database, broker: Broker
) -> None:
    page.follow("own-celery-app.md")
    assert len(page.typed) == 4  # "Four commands"
    database.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
    wait_until(lambda: "order 1 is paid" in page.log, timeout=60, what="the own task")
    wrong = {"no_workers", "foreign_worker", "unknown_task", "no_consumer"}
    wait_until(  # a worker on a busy machine may answer too late
        lambda: wrong.isdisjoint(_findings(page, "-A", "shop")),
        timeout=60,
        what="a check without these findings",
    )
    # A message of a task that nobody has is kept in the app's own broker, and found by `-A`.
    database.execute("UPDATE orders SET status = 'sent' WHERE id = 1")
    program = "from shop.celery import app; app.send_task('shop.unknown', queue='mail', task_id='unknown')"
    page.ask("python", "-c", program)
    wait_until(
        lambda: broker.client.hexists("cdc:dead-letters", "unknown"), timeout=30, what="the dead letter"
    )
    assert "shop.unknown" in page.ask("python", "-m", "cdc_tasks", "dead-letters", "-A", "shop", "list")
    page.ask("python", "-m", "cdc_tasks", "-A", "shop", "health")
    assert "status of the help desk" not in page.log
    assert "sqlalchemy" not in page.ask("python", "-c", "import shop, sys; print(*sys.modules)")


@pytest.mark.oldest
def test_the_page_on_the_light_way_ends_in_the_same_task(page: Page, database: Database) -> None:
    (page.home / "shop").mkdir()
    page.follow("light.md")
    (page.home / "shop" / "__init__.py").touch()
    (page.home / "shop" / "celery.py").write_text(
        "import os\nfrom celery import Celery\n"
        "app = Celery('shop', broker=os.environ['SHOP_BROKER'], include=['shop.tasks'])\n"
    )
    (page.home / "shop" / "tasks.py").write_text(
        "from celery import shared_task\n@shared_task\n"
        "def send_confirmation(order_id): print(f'order {order_id} is paid')\n"
    )
    page.start(["celery", "-A", "shop", "worker", "-Q", "celery,mail", "--loglevel=INFO"], " ready.")
    database.execute("UPDATE orders SET status = 'paid' WHERE id = 2")
    wait_until(lambda: "order 2 is paid" in page.log, timeout=60, what="the task of the other environment")


def test_mistakes_in_the_app_are_told_in_a_sentence(page: Page) -> None:
    (page.home / "shop").mkdir()
    (page.home / "shop" / "__init__.py").touch()
    (page.home / "shop" / "celery.py").write_text(
        "from celery import Celery\napp = Celery('shop', include=['shop.tasks'])\n"
    )
    page.environment["DATABASE_URL"] = "postgresql://localhost/none"
    tasks = page.home / "shop" / "tasks.py"
    task = "from celery import shared_task\nfrom cdc_tasks import on_change\n"
    for application, content, told in (
        ("shap", "", "there is no module shap"),
        ("shop.celery:appp", "", "has no appp"),
        ("shop", "import nothing_there\n", "shop/tasks.py:1"),
        (
            "shop",
            f"{task}@on_change('orders', args=['id'])\n@shared_task\ndef note(): pass\n",
            "shop/tasks.py:3",
        ),
    ):
        tasks.write_text(content)
        found = subprocess.run(
            [page.python, "-m", "listener", "-A", application, "routes"],
            cwd=page.home,
            env=page.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 1
        assert told in found.stderr, found.stderr
        assert "Traceback" not in found.stderr
