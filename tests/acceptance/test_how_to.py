"""A reader who follows the how-to pages, block by block, gets what they promise."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy

import cdc_tasks
from harness.server_process import free_port
from harness.waiting import at_most, wait_until
from tests.support.operators import Operator
from tests.support.publishing import messages
from tests.support.snippets.blocks import CHECKOUT, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database
    from tests.support.snippets.blocks import Block

_PAGES = CHECKOUT / "docs" / "how-to"
_IN_A_ROW = ["first-load", "add-a-route", "rerun", "migrate", "after-a-gap"]
_BY_THEMSELVES = [
    "alerting",
    "disk-fills",
    "fastapi",
    "order-by-key",
    "redis-lost-its-data",
    "several-listeners",
    "what-it-costs",
]
_ELSEWHERE = [
    "kubernetes",
    "systemd",
    "upgrade",
]  # tests/integration/test_deploy.py, tests/acceptance/upgrade.py
_ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, currency text, status text, updated_at timestamptz DEFAULT now())"

# The pages run `check` before the database is prepared, and `status` also while there are alarms or nobody reads.
_ENDS_WITH: Final = {"check": {0, 1}, "status": {0, 1, 3}}


class Reader(Operator):
    """Somebody with a shop, who types what a page says."""

    def __init__(self, database: Database, broker: Broker, directory: Path) -> None:
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url,
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            PYTHONPATH=str(directory),
        )
        self.database, self._broker, self.directory = database, broker, directory
        self._running: list[subprocess.Popen[bytes]] = []
        self.stack = ExitStack()
        self.began = datetime.now(UTC)
        # What stands on the pages, and what this reader has instead.
        self.given = {
            "./": f"{directory}/",
            "127.0.0.1:9187": f"127.0.0.1:{free_port()}",
            "127.0.0.1:8000": f"127.0.0.1:{free_port()}",
        }

    def follows(self, page: str) -> str:
        """Do what the page says; return what its commands wrote."""
        return "\n".join(self.does(block) for block in blocks_of(f"docs/how-to/{page}.md"))

    def does(self, block: Block) -> str:
        """Do what a block says; return what its commands wrote."""
        if block.language == "python" and "engine.begin" in block.text:
            self._runs(block.text)
        elif block.language == "python":
            named = re.match(r"# (\w+\.py)$", block.text, re.MULTILINE)
            (self.directory / (named[1] if named else "shop_routes.py")).write_text(block.text)
        elif block.language == "sql":
            self._says(block.text.replace("'cdc_tasks')", f"'{self.database.name}')"))
        elif block.language == "console":
            return "\n".join(self._types(line.removeprefix("$ ")) for line in block.text.splitlines())
        return ""

    def _runs(self, text: str) -> None:
        url = self.database.url.replace("postgresql:", "postgresql+psycopg2:")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        exec(text, {"engine": engine, "cdc_tasks": cdc_tasks, "text": sqlalchemy.text})

    def _says(self, text: str) -> None:
        if "ALTER SYSTEM" not in text:  # the server is not this reader's alone
            self.database.execute(text.replace("BEGIN;", "").replace("COMMIT;", ""))

    def _types(self, line: str) -> str:
        for shown, ours in self.given.items():
            line = line.replace(shown, ours)
        program, *words = shlex.split(line)
        if program == "export":
            name, _, value = words[0].partition("=")
            self.environment[name] = value
            return ""
        if program == "redis-cli":
            return str(self._broker.client.execute_command(*words))
        if program == "curl":
            return self._runs_program(["curl", "--silent", "--show-error", "--fail", *words])
        if program == "uvicorn":
            words[words.index("--port") + 1] = self.given["127.0.0.1:8000"].rpartition(":")[2]
            self._starts([sys.executable, "-m", "uvicorn", *words], "Uvicorn running on")
            return ""
        if program in {"celery", "pip"}:  # the tasks that wait are enough here
            return ""
        return self._types_python(line, words)

    def _types_python(self, line: str, words: list[str]) -> str:
        assert words[0] == "-m", line
        arguments = [self._time(word) for word in words[1:]]
        if "run" in arguments:
            self.starts(*arguments[1:])
            return ""
        done = self.types(*arguments[1:], module=arguments[0])
        (command,) = [each for each in arguments[1:] if not each.startswith("-") and each != "shop_tasks"][:1]
        expected = _ENDS_WITH.get(command, {0})
        assert done.returncode in expected, (line, done.stdout, done.stderr)
        return done.stdout

    def _runs_program(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=at_most(60))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _time(self, word: str) -> str:
        return {"14:00": self.began.isoformat(), "16:00": "now"}.get(word, word)

    def starts(self, *arguments: str, beside: bool = False, until: str = "streaming") -> Path:
        """Start a listener, without the one before unless it is to run beside that; return its log."""
        if not beside:
            self.ends()
        return self._starts([sys.executable, "-m", "listener", *arguments], until)

    def _starts(self, command: list[str], until: str) -> Path:
        log = self.directory / f"{len(list(self.directory.glob('*.log')))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=CHECKOUT, env=self.environment, stdout=out, stderr=out)
        self._running.append(process)
        self.stack.callback(process.kill)
        wait_until(
            lambda: until in log.read_text() or process.poll() is not None,
            what=f"{command}: {until}",
            timeout=60,
        )
        assert process.poll() is None, log.read_text()
        return log

    def ends(self) -> None:
        """End the programs that run, the latest first."""
        while self._running:
            process = self._running.pop()
            process.terminate()
            process.wait(at_most(60))

    def kills(self) -> None:
        """Kill the listener that was started first."""
        process = self._running.pop(0)
        process.kill()
        process.wait(at_most(60))

    def tasks(self, name: str) -> int:
        """Return how many messages of a task are in the queues."""
        return len(self.messages(name))

    def messages(self, name: str) -> list[dict[str, Any]]:
        """Return the messages of a task that are in the queues."""
        client = self._broker.client
        queues = [
            key for key in client.scan_iter() if client.type(key) == b"list" and not key.startswith(b"cdc:")
        ]
        found = [each for queue in queues for each in messages(client, queue.decode())]
        return [each for each in found if each["headers"]["task"] == name]


@pytest.fixture
def reader(database: Database, broker: Broker, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(database, broker, tmp_path)
    with reader.stack:
        yield reader
        reader.ends()


def test_each_page_is_followed() -> None:
    assert {each.stem for each in _PAGES.glob("*.md")} == {*_IN_A_ROW, *_BY_THEMSELVES, *_ELSEWHERE}


def test_each_command_of_the_pages_in_a_row_does_what_its_page_says(reader: Reader) -> None:
    reader.database.execute(f"{_ORDERS}; INSERT INTO orders SELECT g FROM generate_series(1, 10) g")
    assert "public.orders" in reader.follows("first-load")
    assert "done: 10 sent" in reader.follows("add-a-route")
    assert reader.tasks("shop.greet") == 10
    reader.began = datetime.now(UTC)
    reader.database.execute("UPDATE orders SET currency = 'USD' WHERE id <= 7")
    assert "done: 7 changes, 7 tasks" in reader.follows("rerun")
    assert reader.tasks("shop.bill") == 14
    reader.follows("migrate")
    assert reader.tasks("shop.bill") == 14
    reader.ends()
    reader.database.execute(f"SELECT pg_drop_replication_slot('{reader.database.name}')")
    reader.database.execute("INSERT INTO orders VALUES (11, 'EUR', 'new', '2026-11-26 15:00+00')")
    assert "python -m listener backfill public.orders" in reader.follows("after-a-gap")


def test_an_order_of_the_api_is_followed_by_its_receipt_and_a_task_that_knows_the_user(
    reader: Reader,
) -> None:
    blocks = blocks_of("docs/how-to/fastapi.md")
    blocks.sort(key=lambda block: block.language == "console")  # the file of the table stands behind its code
    for block in blocks:
        reader.does(block)
    wait_until(lambda: reader.tasks("shop_tasks.tell_customer"), what="the task of the update", timeout=60)
    assert reader.tasks("shop_tasks.send_receipt") == 1
    (message,) = reader.messages("shop_tasks.tell_customer")
    assert message["headers"]["cdc_context"]["user_id"] == 7


def test_with_a_key_a_task_waits_for_the_one_before(reader: Reader) -> None:
    reader.database.execute(_ORDERS)
    first, *others = blocks_of("docs/how-to/order-by-key.md")
    reader.does(first)
    reader.environment["CDC_ROUTES"] = "shop_routes:setup"
    reader.starts("run")
    reader.database.execute("INSERT INTO orders VALUES (1)")
    reader.database.execute("UPDATE orders SET currency = 'EUR'")
    wait_until(lambda: reader.tasks("shop.greet"), what="the first task", timeout=60)
    wait_until(
        lambda: "orders:1" in reader.types("keys", "list", module="cdc_tasks").stdout,
        what="what waits for the first task",
        timeout=60,
    )
    assert not reader.tasks("shop.bill")
    shown = "\n".join(reader.does(block) for block in others)
    assert re.search(r"shop\.bill.* id +orders +hold", shown), shown


def test_a_standby_takes_over_and_other_names_go_on(reader: Reader) -> None:
    reader.database.execute(_ORDERS)
    _write_routes(reader, "shop_routes", "search_routes", "billing_routes")
    standby, *names, prefix = blocks_of("docs/how-to/several-listeners.md")
    assert standby.text.count("listener run") == 2
    reader.starts("run")
    log = reader.starts("run", beside=True, until="standby")
    reader.database.execute("INSERT INTO orders VALUES (1)")
    wait_until(lambda: reader.tasks("shop.greet") == 1, what="the leader", timeout=60)
    reader.kills()
    wait_until(lambda: "streaming" in log.read_text(), what="the standby", timeout=60)
    reader.given["CDC_NAME=search"] = f"CDC_NAME={reader.database.name}_search"
    reader.given["CDC_NAME=billing"] = f"CDC_NAME={reader.database.name}_billing"
    reader.given["postgresql://cdc_listener@db.example.com/billing"] = reader.database.url
    for block in [*names, prefix]:
        reader.does(block)
    reader.database.execute("INSERT INTO orders VALUES (2)")
    wait_until(lambda: reader.tasks("shop.greet") == 2, what="the listener with another name", timeout=60)


def test_after_redis_lost_its_data_what_was_lost_is_sent_again(reader: Reader, broker: Broker) -> None:
    reader.database.execute(_ORDERS)
    _write_routes(reader, "shop_routes")
    reader.environment["CDC_JOURNAL"] = str(reader.directory)
    log = reader.starts("run")
    reader.began = datetime.now(UTC)
    reader.database.execute("INSERT INTO orders SELECT g FROM generate_series(1, 5) g")
    wait_until(lambda: reader.tasks("shop.greet") == 5, what="the tasks", timeout=60)
    lost = _ids(reader)
    broker.client.flushall()
    wait_until(lambda: "broker_lost_data" in log.read_text(), what="the listener to notice", timeout=60)
    reader.database.execute("INSERT INTO orders VALUES (6)")
    wait_until(lambda: reader.tasks("shop.greet") == 1, what="what comes after the loss", timeout=60)
    try:
        shown = reader.follows("redis-lost-its-data")
    finally:
        broker.client.config_set("appendonly", "no")
    assert "done: 6 changes, 6 tasks" in shown
    assert lost < _ids(reader)  # they have the ids that they had
    assert "done: 6 sent" in shown


def test_a_slot_that_nobody_reads_is_found_and_dropped(reader: Reader) -> None:
    reader.database.execute(_ORDERS)
    _write_routes(reader, "shop_routes")
    reader.starts("run")
    reader.ends()
    shown = ""
    for block in blocks_of("docs/how-to/disk-fills.md"):
        if "pg_drop_replication_slot" in block.text:
            reader.ends()
        shown += reader.does(block)
    assert "listener        none" in shown
    reader.database.execute("INSERT INTO orders VALUES (1)")
    wait_until(lambda: reader.tasks("shop.greet") == 1, what="what comes after the gap", timeout=60)


def test_what_pages_ask_the_database_and_the_listener_is_answered(reader: Reader) -> None:
    reader.database.execute(_ORDERS)
    _write_routes(reader, "shop_routes")
    told = reader.follows("alerting")
    assert "cdc_role" in told
    assert '"alarm_codes": []' in told
    assert "running" in reader.follows("what-it-costs")


def _ids(reader: Reader) -> set[str]:
    return {message["headers"]["id"] for message in reader.messages("shop.greet")}


def _write_routes(reader: Reader, *modules: str) -> None:
    for module in modules:
        (reader.directory / f"{module}.py").write_text(
            "from cdc_tasks import INSERT, READ, BinlogRouter\n\n\n"
            "def setup(schema='public'):\n"
            "    router = BinlogRouter()\n"
            "    router.register(schema, 'orders', [INSERT, READ], 'shop.greet', args=['id'])\n"
            "    return router\n"
        )
    reader.environment["CDC_ROUTES"] = f"{modules[0]}:setup"
