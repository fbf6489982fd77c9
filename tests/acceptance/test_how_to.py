"""A reader who follows the how-to pages, block by block, gets what they promise."""

from __future__ import annotations

import re
import shlex
import signal
import textwrap
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy

import cdc_tasks
from harness.waiting import at_most, wait_until
from tests.support.operators import Operator
from tests.support.publishing import messages

if TYPE_CHECKING:
    import subprocess

    from tests.conftest import Broker, Database

_PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_ORDER = ["first-load", "add-a-route", "rerun", "migrate", "after-a-gap"]


# The pages run `check` before the database is prepared, and `status` also while there are alarms.
_ENDS_WITH: Final = {"check": {1}, "status": {0, 3}}


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
        self.database, self._broker, self._directory = database, broker, directory
        self.listener: subprocess.Popen[str] | None = None
        self.stack = ExitStack()
        self.began = datetime.now(UTC)

    def follows(self, page: str) -> str:
        """Do what the page says; return what its commands wrote."""
        written = []
        for language, text in _BLOCK.findall((_PAGES / f"{page}.md").read_text()):
            block = textwrap.dedent(text)
            if language == "python" and "engine" in block:
                self._runs(block)
            elif language == "python":
                (self._directory / "shop_routes.py").write_text(block)
            elif language == "sql":
                self.database.execute(block.replace("BEGIN;", "").replace("COMMIT;", ""))
            else:
                written += [self._types(line.removeprefix("$ ")) for line in block.splitlines()]
        return "\n".join(written)

    def _runs(self, block: str) -> None:
        url = self.database.url.replace("postgresql:", "postgresql+psycopg2:")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        exec(block, {"engine": engine, "cdc_tasks": cdc_tasks, "text": sqlalchemy.text})

    def _types(self, line: str) -> str:
        program, *words = shlex.split(line)
        if program == "export":
            name, _, value = words[0].partition("=")
            self.environment[name] = value.replace("./", f"{self._directory}/")
            return ""
        assert [program, *words[:2]] == ["python", "-m", "listener"], line
        arguments = [self._time(word) for word in words[2:]]
        if arguments[0] == "run":
            self.starts(*arguments)
            return ""
        done = self.types(*arguments)
        expected = _ENDS_WITH.get(arguments[0], {0})
        assert done.returncode in expected, (line, done.stdout, done.stderr)
        return done.stdout

    def _time(self, word: str) -> str:
        return {"14:00": self.began.isoformat(), "16:00": "now"}.get(word, word)

    def starts(self, *arguments: str) -> None:
        self.ends()
        self.listener = self.stack.enter_context(self.running(*arguments))
        listener = self.listener
        wait_until(lambda: listener.poll() is not None or self._reads(), what="the listener", timeout=60)
        assert listener.poll() is None, listener.communicate()

    def _reads(self) -> bool:
        query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND confirmed_flush_lsn IS NOT NULL"
        return bool(self.database.fetch(query, self.database.name))

    def ends(self) -> None:
        if self.listener is not None:
            self.listener.send_signal(signal.SIGTERM)
            self.listener.communicate(timeout=at_most(60))

    def tasks(self, name: str) -> int:
        client = self._broker.client
        queues = [
            key for key in client.scan_iter() if client.type(key) == b"list" and not key.startswith(b"cdc:")
        ]
        found = [each for queue in queues for each in messages(client, queue.decode())]
        return sum(each["headers"]["task"] == name for each in found)


def test_each_command_of_the_pages_does_what_its_page_says(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    assert {each.stem for each in _PAGES.glob("*.md")} == set(_ORDER)
    database.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, currency text, updated_at timestamptz DEFAULT now());"
        "INSERT INTO orders SELECT g FROM generate_series(1, 10) g"
    )
    reader = Reader(database, broker, tmp_path)
    with reader.stack:
        assert "public.orders" in reader.follows("first-load")
        assert "done: 10 sent" in reader.follows("add-a-route")
        assert reader.tasks("shop.greet") == 10
        reader.began = datetime.now(UTC)
        database.execute("UPDATE orders SET currency = 'USD' WHERE id <= 7")
        assert "done: 7 changes, 7 tasks" in reader.follows("rerun")
        assert reader.tasks("shop.bill") == 14
        reader.follows("migrate")
        assert reader.tasks("shop.bill") == 14
        reader.ends()
        database.execute(f"SELECT pg_drop_replication_slot('{database.name}')")
        database.execute("INSERT INTO orders VALUES (11, 'EUR', '2026-11-26 15:00+00')")
        assert "python -m listener backfill public.orders" in reader.follows("after-a-gap")
        reader.ends()
