"""A reader who does what the README says, line by line, on real servers, gets what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import redis

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.testing import row_change
from demo.inbox import Inbox
from demo.programs import Program
from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_README = (_CHECKOUT / "README.md").read_text()
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)
_BIN = Path(sys.executable).parent

# What is not run here, and why that is no gap.
_NOT_RUN = {
    "python3 -m venv .venv": "the tests run in one",
    ". .venv/bin/activate": "the same",
    'pip install ".[all]"': "it would change what the tests run in; scripts/make-venv does it for every run of them",
    "scripts/make-env": "tests/integration/test_compose.py",
    "docker compose up --build": "needs Docker; tests/acceptance/test_compose_stack.py",
}
_READY = {"celery -A cdc_tasks worker --loglevel=INFO": " ready.", "python -m listener": "streaming"}


def blocks(language: str) -> list[str]:
    return [text for each, text in _BLOCKS if each == language]


class Typed(Program):
    """A command of the README that goes on until it is ended."""

    name = "command"
    stop_timeout = 20

    def __init__(self, line: str, environment: dict[str, str], directory: Path) -> None:
        super().__init__()
        self._line = line
        self._variables = environment
        self.home = directory  # where it runs
        self.ready_line = _READY[line]  # type: ignore[misc]  # each command has its own

    def _command(self) -> list[str]:
        return ["/bin/bash", "-c", f"exec {self._line}"]

    def _environment(self) -> dict[str, str]:
        return self._variables


class Reader:
    """Somebody with a shell, in a directory with nothing in it, who follows the README."""

    def __init__(self, directory: Path, postgres: PostgresServer, valkey: ValkeyServer, inbox: Inbox) -> None:
        self.directory = directory
        self._addresses = {
            "127.0.0.1:5432": f"127.0.0.1:{postgres.port}",
            "127.0.0.1:6379": f"127.0.0.1:{valkey.port}",
        }
        self._superuser = postgres.url_of("helpdesk")
        self.environment = {
            "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{_CHECKOUT}:{directory}",
            "PYTHONUNBUFFERED": "1",
            "SLACK_API_URL": inbox.slack_api_url,
            "TEAMS_ALLOW_LOOPBACK": "true",
        }
        self.running: dict[str, Typed] = {}
        self.done: list[str] = []

    def follow(self, language: str, text: str) -> None:
        """Do what a block says."""
        if language == "console":
            for line in text.splitlines():
                self.type(line.removeprefix("$ "))
        elif language == "python":
            path = self.directory / text.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif "ALTER SYSTEM" in text:
            self.sql(text)

    def type(self, line: str, *, stdin: str = "") -> str:
        """Run a line of a shell; returns what it printed."""
        self.done.append(line)
        if line in _NOT_RUN:
            return ""
        for theirs, ours in self._addresses.items():
            line = line.replace(theirs, ours)
        if line in _READY:
            self.start(line)
            return ""
        if line.startswith("export "):
            line += "; env -0"
        elif line.startswith("make "):
            line = f"make --dry-run --directory={_CHECKOUT} {line.removeprefix('make ')}"
        result = subprocess.run(
            ["/bin/bash", "-c", line],
            cwd=self.directory,
            env=self.environment,
            input=stdin or "xoxb-a-token\n",
            capture_output=True,
            text=True,
            timeout=at_most(60),
            check=False,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        if line.endswith("env -0"):
            self.environment = dict(pair.split("=", 1) for pair in result.stdout.rstrip("\0").split("\0"))
        return result.stdout

    def start(self, line: str) -> None:
        program = self.running[line] = Typed(line, dict(self.environment), self.directory)
        program.launch()
        program.wait()

    def stop(self) -> None:
        for program in reversed(self.running.values()):
            program.close()
        self.running.clear()

    def sql(self, text: str) -> None:
        """Run statements, each in a transaction of its own, as `psql` does."""
        code = "\n".join(line.split("--")[0] for line in text.splitlines())
        connection = psycopg2.connect(self._superuser)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in filter(None, map(str.strip, code.split(";"))):
                cursor.execute(statement)
        connection.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Reader, Inbox, redis.Redis]]:
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        valkey = stack.enter_context(ValkeyServer())
        inbox = stack.enter_context(Inbox())
        _make_helpdesk(postgres)
        reader = Reader(tmp_path, postgres, valkey, inbox)
        stack.callback(reader.stop)
        yield reader, inbox, stack.enter_context(redis.Redis.from_url(valkey.url_of(1)))


def _make_helpdesk(postgres: PostgresServer) -> None:
    """Make the database that a reader has already: Mona manages Anna."""
    connection = psycopg2.connect(postgres.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE helpdesk_app LOGIN")
        cursor.execute("CREATE DATABASE helpdesk OWNER helpdesk_app")
    connection.close()
    command = [sys.executable, "-m", "cdc_tasks", "schema"]
    schema = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=True).stdout
    connection = psycopg2.connect(postgres.url_of("helpdesk", user="helpdesk_app"))
    with connection, connection.cursor() as cursor:
        cursor.execute(schema)
        cursor.execute("INSERT INTO roles (name) VALUES ('Admin')")
        cursor.execute("INSERT INTO users (name, email) VALUES ('Mona', 'mona@example.com')")
        cursor.execute("INSERT INTO users (name, email, manager_id) VALUES ('Anna', 'anna@example.com', 1)")
    connection.close()


def test_following_it_from_top_to_bottom_leads_to_what_it_promises(
    servers: tuple[Reader, Inbox, redis.Redis],
) -> None:
    reader, inbox, cache = servers
    for language, text in _BLOCKS:
        reader.follow(language, text)
    reader.type(
        "python -m cdc_tasks connect-account mona@example.com teams", stdin=f"{inbox.teams_webhook('Mona')}\n"
    )

    _the_first_screen_is_true(reader, inbox, cache)
    _the_readers_own_route_fires(reader)


def _the_first_screen_is_true(reader: Reader, inbox: Inbox, cache: redis.Redis) -> None:
    reader.sql(blocks("sql")[0])

    def said() -> list[tuple[str, str]]:
        return [(message.to, message.text) for message in inbox.messages()]

    for to, words in (
        ("anna@example.com", "New Ticket: TKT-00001 Printer on fire"),
        ("Mona", "Manager: New Ticket: TKT-00001 Printer on fire"),
        ("anna@example.com", "Status: open → closed"),
    ):
        wait_until(
            lambda to=to, words=words: any(each == to and words in text for each, text in said()),
            timeout=30,
            what=f"{words} to {to}",
        )
    wait_until(
        lambda: b"Super Admin" in (cache.get("master:roles") or b""), timeout=30, what="the fresh cache"
    )


def _the_readers_own_route_fires(reader: Reader) -> None:
    reader.stop()
    for line in _READY:
        reader.start(line)
    reader.sql(
        "INSERT INTO tickets (title, created_by_id) VALUES ('Mine', 2); UPDATE tickets SET status = 'closed'"
    )
    worker = reader.running["celery -A cdc_tasks worker --loglevel=INFO"]

    wait_until(lambda: "thanks to 2 for ticket 2" in worker.log, timeout=30, what="the reader's own task")

    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "myapp/test_routes.py"]
    result = subprocess.run(
        test, cwd=reader.directory, env=reader.environment, capture_output=True, text=True, check=False
    )
    assert "2 passed" in result.stdout, result.stdout


def test_every_command_is_run_here_or_it_is_said_why_not() -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    assert set(_NOT_RUN) <= {line.removeprefix("$ ") for line in lines}


def test_the_first_screen_has_one_sentence_a_statement_and_the_one_command() -> None:
    first_screen = _README.splitlines()[:22]
    assert first_screen[0] == "# cdc-tasks"
    assert first_screen[2].count(".") == 1
    assert first_screen.index("```sql") < first_screen.index("$ make demo")


def test_the_change_that_is_shown_is_what_a_task_gets() -> None:
    shown: dict[str, Any] = json.loads(blocks("json")[0])
    change = row_change("tickets", EventType.UPDATE, before={"id": 1}, after={"id": 1})

    assert list(shown) == list(change.to_message())
    assert RowChange.from_message(shown).to_message() == shown


def test_its_settings_are_those_of_the_page_that_the_settings_classes_are_compared_with() -> None:
    row = re.compile(r"^\| `([A-Z_]+)` \| (.*?) \|", re.MULTILINE)
    shown, known = (
        dict(row.findall((_CHECKOUT / page).read_text())) for page in ("README.md", "docs/settings.md")
    )

    assert len(shown) >= 9
    assert shown == {name: known[name] for name in shown}


def test_every_page_that_is_linked_to_exists() -> None:
    for page in [_CHECKOUT / "README.md", _CHECKOUT / "CHANGELOG.md", *(_CHECKOUT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", page.read_text()):
            assert not link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_files_that_the_design_names_exist() -> None:
    design = (_CHECKOUT / "docs" / "design.md").read_text()
    for path in re.findall(r"`((?:cdc_tasks|listener|demo)/[\w/]+\.py)`", design):
        assert (_CHECKOUT / path).exists(), path
    assert os.access(_CHECKOUT / "scripts" / "make-env", os.X_OK)
