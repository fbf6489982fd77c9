"""`python -m demo` for a new user: as root and as another user, and with every way to end it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg2
import pytest

from cdc_tasks.db import sqlalchemy_url
from demo.statements import Statements
from harness.waiting import at_most, wait_until
from tests.support.browser import Browser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Broker, Database
    from tests.support.mysql.source import MySQLDatabase

_CHECKOUT = Path(__file__).resolve().parents[2]
# Become `nobody`, with the right to read the checkout and the interpreter in any directory of root.
_AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
)
_INVITATION = "Try it yourself"


class Demo:
    """The demo as a process, with its output line by line, and all of its descendants."""

    def __init__(self, *arguments: str, via: Sequence[str] = (), **environment: str) -> None:
        self._mark = f"mark-{uuid.uuid4().hex}"
        self._home = tempfile.TemporaryDirectory(prefix="cdc-demo-", dir="/tmp", ignore_cleanup_errors=True)
        self.home = Path(self._home.name)  # everything that it writes; also removes what a SIGKILL leaves
        self.home.chmod(0o777)
        # A shell's background jobs ignore Ctrl-C, and the demo would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        self.process = subprocess.Popen(
            [*via, sys.executable, "-m", "demo", *arguments],
            cwd=_CHECKOUT,
            env={
                **kept,
                "TMPDIR": str(self.home),
                "DEMO_TEST_MARK": self._mark,
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._home.cleanup()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str) -> None:
        """Wait until it is printed; the demo must not end before."""
        wait_until(
            lambda: text in self.output or self.process.poll() is not None, timeout=120, what=repr(text)
        )
        assert text in self.output, self.output

    def end(self) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(at_most(120))
        self._reader.join()
        return status

    def processes(self) -> dict[int, str]:
        """Return each descendant and its command, also those with another parent by now."""
        found = {}
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and self._mark.encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (
                        (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
            except OSError:  # it has ended, or belongs to another user
                continue
        return found

    def address_of(self, page: str) -> str:
        """Return the address that it prints of one of its pages."""
        found = re.search(rf"{page} (http://127\.0\.0\.1:\d+)", self.output)
        assert found is not None, self.output
        return found[1]

    def pid_of(self, words: str) -> int:
        """Return the process whose command contains these words, the oldest of several."""
        return min(pid for pid, command in self.processes().items() if words in command)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)


def assert_nothing_runs(demo: Demo) -> None:
    wait_until(lambda: not demo.processes(), timeout=15, what="every process of the demo to be gone")


def assert_the_scenario_was_shown(output: str, *, schema: str = "public") -> None:
    assert len(re.findall(r"\d+ ms after commit", output)) >= 8
    unwrapped = " ".join(re.sub(r"\d+ ms after commit", "", output).split())
    for words in (
        "INSERT INTO tickets (title, priority, assigned_to_id, created_by_id)",
        f"insert of {schema}.tickets",
        "cdc_tasks.notify_ticket_insert SUCCESS",
        "anna@example.com New Ticket: TKT-00001 Printer on fire",
        "Mona Manager: New Ticket: TKT-00001 Printer on fire",
        "nora@example.com Welcome",
        "open → in progress",
        "Anna → Nora",
        '"name": "Super Admin"',
        "celery -A cdc_tasks call cdc_tasks.refresh_master_cache",
        "anna@example.com Order 2 is confirmed: a laptop",
        "One message: of the order that was committed.",
        "kill -KILL",
        "Nothing is missing, and nothing arrived twice.",
    ):
        assert words in unwrapped, output
    assert "Order 1 is confirmed" not in unwrapped
    assert "-" not in "".join(re.findall(r"(\S+) ms after", output))
    assert re.search(r"Inbox http://127\.0\.0\.1:\d+", output)
    assert re.search(r"Console http://127\.0\.0\.1:\d+", output)
    assert re.search(r"Flower http://127\.0\.0\.1:\d+", output)


def test_the_scenario_is_shown_once_on_embedded_servers_and_nothing_is_left() -> None:
    with Demo("--once") as demo:
        assert demo.end() == 0, demo.output
        assert_the_scenario_was_shown(demo.output)
        assert_nothing_runs(demo)
        assert list(demo.home.iterdir()) == []


def test_a_user_other_than_root_sees_the_same() -> None:
    with Demo("--once", via=_AS_NOBODY if os.geteuid() == 0 else (), HOME="/nonexistent") as demo:
        demo.wait_for("All running after")
        assert 0 not in {Path(f"/proc/{pid}").stat().st_uid for pid in demo.processes()}
        assert demo.end() == 0, demo.output
        assert_the_scenario_was_shown(demo.output)


def test_the_servers_that_the_environment_names_are_used_and_left_as_they_were(
    database: Database, broker: Broker
) -> None:
    addresses = {"DATABASE_URL": database.url, "CELERY_BROKER_URL": broker.url, "CACHE_URL": broker.cache_url}
    with Demo("--once", **addresses) as demo:
        assert demo.end() == 0, demo.output

    assert_the_scenario_was_shown(demo.output)
    assert f"Using {database.url} (DATABASE_URL)" in demo.output
    assert demo.output.index("It creates the tables") < demo.output.index("Starting a worker")
    assert "Starting PostgreSQL" not in demo.output
    assert "Starting Valkey" not in demo.output
    assert database.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    assert (
        database.fetch("SELECT slot_name FROM pg_replication_slots WHERE database = %s", database.name) == []
    )
    assert database.fetch("SELECT pubname FROM pg_publication") == []
    assert list(broker.client.scan_iter("*cdc_demo*")) == []


def test_the_same_scenario_is_shown_on_a_mariadb_started_by_any_user() -> None:
    arguments = ("--once", "--database", "mariadb")
    with Demo(*arguments, via=_AS_NOBODY if os.geteuid() == 0 else (), HOME="/nonexistent") as demo:
        assert demo.end() == 0, demo.output
        assert_the_scenario_was_shown(demo.output, schema="helpdesk")
        assert_nothing_runs(demo)
        assert list(demo.home.iterdir()) == []


def test_a_mysql_that_the_environment_names_is_used_and_left_as_it_was(
    mysql_database: MySQLDatabase, broker: Broker
) -> None:
    addresses = {
        "DATABASE_URL": mysql_database.url,
        "CELERY_BROKER_URL": broker.url,
        "CACHE_URL": broker.cache_url,
    }
    with Demo("--once", **addresses) as demo:
        assert demo.end() == 0, demo.output

    assert_the_scenario_was_shown(demo.output, schema=mysql_database.name)
    assert "Starting MySQL" not in demo.output
    assert mysql_database.fetch("SHOW TABLES") == []
    for redis in (broker.client, broker.cache):
        assert list(redis.scan_iter("*cdc_demo*")) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["mariadb"], {"CDC_TEST_MARIADB_INSTALL_DB": "/nowhere"}, "apt-get install mariadb-server"),
        (["mysql"], {"CDC_TEST_MYSQL_SERVER": "/nowhere"}, "CDC_TEST_MYSQL_SERVER=/path/of/mysqld"),
        (["mysql"], {"DATABASE_URL": "postgresql://here/demo"}, "Leave out one of them"),
        (["mariadb"], {"DATABASE_URL": "mysql://here/"}, "names no database"),
    ],
)
def test_a_database_that_cannot_be_started_is_an_error_with_a_hint(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    with Demo("--once", "--database", *arguments, **environment) as demo:
        assert demo.end() == 1
        assert words in demo.output
        assert "Traceback" not in demo.output


def test_tables_that_are_not_the_demos_are_not_touched(database: Database, broker: Broker) -> None:
    database.execute("CREATE TABLE tickets (mine text); INSERT INTO tickets VALUES ('precious')")

    with Demo("--once", DATABASE_URL=database.url, CELERY_BROKER_URL=broker.url) as demo:
        assert demo.end() == 1

    assert "already has tables that the demo would create: tickets" in demo.output
    assert "Traceback" not in demo.output
    assert database.fetch("SELECT mine FROM tickets") == [("precious",)]


def test_a_change_by_hand_after_the_scenario_is_shown_and_ctrl_c_ends_everything() -> None:
    with Demo() as demo:
        demo.wait_for(_INVITATION)
        demo.wait_for("Auditor")
        url = re.search(r"postgresql://\S+", demo.output)
        assert url is not None
        connection = psycopg2.connect(url[0])
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO tickets (title, assigned_to_id) VALUES ('By hand', 2)")
        connection.close()
        demo.wait_for("Manager: New Ticket: TKT-00022 By hand")
        assert demo.output.index("Console http://") < demo.output.index("Inbox http://")
        assert_a_person_sees_cause_and_effect(demo.address_of("SQL"), demo.address_of("Console"))
        assert_nobody_else_runs_sql(demo.address_of("SQL"))

        demo.process.send_signal(signal.SIGINT)

        assert demo.end() == 0
        assert "Nothing is left running." in demo.output
        assert_nothing_runs(demo)


_EXAMPLE = """
[...document.querySelectorAll('#examples button')].find((each) => each.innerText === arguments[0]).click();
document.querySelector('form button').click();
"""


def assert_a_person_sees_cause_and_effect(box: str, console: str) -> None:
    with Browser() as browser:
        browser.resize(390, 844)
        browser.open(box)

        def run_example(label: str, *words: str) -> None:
            wait_until(lambda: label in browser.text, timeout=30, what=f"the example {label!r}")
            browser.run(_EXAMPLE, label)
            wait_until(
                lambda: all(each in browser.text for each in words),
                timeout=30,
                what=f"{words} on the page, which has: {browser.text}",
            )

        run_example(
            "Close a ticket",
            *(
                "1 row changed.",
                "update public.tickets",
                "status: open → closed",
                "fires cdc_tasks.notify_ticket_update",
            ),
            *("not cdc_tasks.notify_ticket_insert: it is for", "cdc_tasks.notify_ticket_update SUCCESS"),
            *("Slack to anna@example.com", "Ticket Updated", "Teams to Mona"),
        )
        run_example(
            "Three tickets in one statement", "3 rows changed.", "No network", "No sound", "No coffee"
        )
        run_example("Roll back", "Done: ROLLBACK.", "None: nothing was committed")
        run_example("Refresh the cache", "The cache has a new master:departments")
        run_example("Look", "25 rows", "No coffee")
        browser.run(
            "document.querySelector('#sql').value = 'SELEC 1'; document.querySelector('form button').click()"
        )
        wait_until(lambda: "The database refused: " in browser.text, timeout=20, what="the error")
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("return document.querySelector('nav a').href") == f"{console}/"
        assert {f"http://{host}" for host in browser.hosts} == {box}
        assert browser.problems() == []


def assert_nobody_else_runs_sql(box: str) -> None:
    """A page from elsewhere has no token, and another name leads nowhere."""
    for path, headers, status in (
        ("/run", {"X-Token": "guessed"}, 403),
        ("/run", {}, 403),
        ("/", {"Host": "evil.example"}, 421),
    ):
        body = b'{"sql": "SELECT 1"}' if path == "/run" else None
        request = urllib.request.Request(f"{box}{path}", data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)
        assert raised.value.code == status
        raised.value.close()


class Terminal:
    """A person at a terminal: types, and reads what is there."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        shown = {
            "TERM": "xterm",
            "COLUMNS": "110",
            "LINES": "40",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "NO_COLOR": "1",
        }
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments],
            cwd=_CHECKOUT,
            env={**kept, **shown, **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def types(self, text: str) -> None:
        os.write(self._master, f"{text}\r".encode())

    def presses(self, key: bytes) -> None:
        os.write(self._master, key)

    def reads(self, *words: str, prompt: bool = False) -> str:
        """Read until all of the words have come, in any order; return what came, without control sequences.

        With `prompt`, wait for the next prompt behind the last of them: before, a key would reach nobody.
        """
        wait_until(
            lambda: self._holds(words) and (not prompt or "sql>" in self._plain().rpartition(words[-1])[2]),
            timeout=120,
            what=f"{words} on the terminal: {self._plain()!r}",
        )
        shown, self._read = self._plain(), b""
        return shown

    def _holds(self, words: Sequence[str]) -> bool:
        while select.select([self._master], [], [], 0.05)[0]:
            try:
                self._read += os.read(self._master, 65536)
            except OSError:  # the other end is closed
                break
        return all(each in self._plain() for each in words)

    def _plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r", "", self._read.decode(errors="replace"))


def test_a_person_at_a_terminal_types_sql_and_sees_what_comes_of_it() -> None:
    with Terminal("--prompt") as terminal:
        terminal.reads("Try it yourself", "Or in another terminal:", "sql>")

        terminal.types("INSERT INTO tickets (title, assigned_to_id) VALUES ('100% by hand', 2);")
        shown = terminal.reads("1 row changed.", "notify_ticket_insert", "Slack", "Manager: New Ticket")
        assert "TKT-00001 100% by hand" in shown
        assert re.search(r"\d+ ms after the statement was sent", shown)

        terminal.types("SELECT id, title AS what FROM tickets")
        terminal.reads("what", "100% by hand", "1 row ")

        terminal.types("SELEC 1;")
        terminal.reads('syntax error at or near "SELEC"')

        terminal.types("CREATE TABLE notes (id int)")
        terminal.reads("Done.")
        terminal.types("INSERT INTO notes VALUES (1), (2)")
        terminal.reads("2 rows changed.", "No task: no route matches this change.", prompt=True)

        terminal.presses(b"\x03")
        terminal.reads("Stopping", "Nothing is left running.")
        assert terminal.process.wait(at_most(60)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_keeps_running_when_the_demo_is_killed(number: signal.Signals) -> None:
    with Demo() as demo:
        demo.wait_for("All running after")
        assert len(demo.processes()) > 5

        demo.process.send_signal(number)
        demo.end()

        assert_nothing_runs(demo)


def test_a_message_that_does_not_come_is_a_clear_error() -> None:
    with Demo("--once") as demo:
        demo.wait_for("All running after")
        os.kill(demo.pid_of("celery -A cdc_tasks worker"), signal.SIGKILL)

        assert demo.end() == 1

        assert "the worker has ended by itself" in demo.output
        assert "the end of its log" in demo.output
        assert "Traceback" not in demo.output
        assert_nothing_runs(demo)


@pytest.fixture(params=["database", "mariadb_database", "mysql_database"])
def any_kind(request: pytest.FixtureRequest) -> Database | MySQLDatabase:
    found: Database | MySQLDatabase = request.getfixturevalue(request.param)
    return found


def test_statements_are_run_as_a_client_would_run_them(any_kind: Database | MySQLDatabase) -> None:
    statements = Statements(sqlalchemy_url(any_kind.url))
    any_kind.execute("CREATE TABLE notes (id int, words varchar(300))")

    inserted = statements.run("INSERT INTO notes VALUES (1, '100%'), (2, NULL), (3, 'c');")
    assert (inserted.words, inserted.is_error) == ("3 rows changed.", False)
    rolled_back = statements.run("BEGIN; UPDATE notes SET words = 'gone; really'; ROLLBACK;")
    assert not rolled_back.is_error, rolled_back.words
    left_open = statements.run("BEGIN; DELETE FROM notes")
    assert "left open, so it has been rolled back" in left_open.words

    found = statements.run("SELECT id, words FROM notes ORDER BY id")
    assert (found.columns, found.rows) == (["id", "words"], [["1", "100%"], ["2", "NULL"], ["3", "c"]])
    many = statements.run(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT i FROM n"
    )
    assert (many.words, len(many.rows)) == ("60 rows, the first 50 are shown.", 50)

    refused = statements.run("SELEC 1")
    assert refused.is_error
    assert "syntax" in refused.words
    assert "SELEC" in refused.words
    assert statements.run("INSERT INTO notes (no_such) VALUES (1)").is_error
