"""The Django project of tests/django_project, on a test's own servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import psycopg2
import pymysql
from psycopg2 import errors

from harness.listener_process import mortal
from harness.waiting import wait_until

if TYPE_CHECKING:
    import redis

__all__ = ["Project", "Running", "Writer", "sent_to", "unlike"]

_PROJECT: Final = Path(__file__).resolve().parents[1] / "django_project"
_CHECKOUT: Final = _PROJECT.parents[1]


class Project:
    """A copy of the project, and a shell in it."""

    def __init__(
        self, home: Path, *, database_url: str, broker_url: str, python: str = sys.executable
    ) -> None:
        shutil.copytree(_PROJECT, home, ignore=shutil.ignore_patterns("__pycache__"))
        address = urlsplit(database_url)
        self.home, self.database_url, self.python = home, database_url, python
        self.environment = {
            "PATH": f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(home),
            "PYTHONUNBUFFERED": "1",
            "SHOP_ENGINE": "mysql" if address.scheme == "mysql" else "postgresql",
            "SHOP_DATABASE": address.path.strip("/"),
            "SHOP_USER": address.username or "",
            "SHOP_PASSWORD": address.password or "",
            "SHOP_PORT": str(address.port),
            "SHOP_BROKER": broker_url,
            "CACHE_URL": f"{broker_url.rpartition('/')[0]}/1",
        }

    def manage(self, *arguments: str, status: int = 0, **variables: str) -> str:
        """Run `manage.py`, and return its output; fail unless it ends with this status."""
        return self.run([self.python, "manage.py", *arguments], status=status, **variables)

    def run(self, command: Sequence[str], *, status: int = 0, **variables: str) -> str:
        """Run a command in the project's directory."""
        done = subprocess.run(
            command,
            cwd=self.home,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, ready: str) -> Running:
        """Start a program that runs until it is stopped, and wait until it prints `ready`."""
        return Running(command, self.home, self.environment, ready)

    def listen(self) -> Running:
        """Start `manage.py cdc run`."""
        return self.start(self.python, "manage.py", "cdc", "run", "--json-logs", ready='"streaming"')


class Running:
    """A running program of the project."""

    def __init__(
        self, command: Sequence[str], home: Path, environment: Mapping[str, str], ready: str
    ) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed in `close`
        self.process = subprocess.Popen(
            mortal(command),
            cwd=home,
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: self.has_printed(ready), timeout=20, what=f"{command} to print {ready!r}")
        except AssertionError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def has_printed(self, text: str) -> bool:
        """Return whether it has printed this; fail if it ended earlier."""
        printed = text in self.log
        assert printed or self.process.poll() is None, f"it ended by itself:\n{self.log[-3000:]}"
        return printed

    def kill(self) -> None:
        """End it with SIGKILL, with its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Kill it, and remove its log."""
        self.kill()
        self._log.close()


# --- Writers, while tables change -----------------------------------------------------------------------

_NO_SUCH_TABLE: Final = 1146
_RETRIED: Final = frozenset(
    {1205, 1213, _NO_SUCH_TABLE}
)  # lock wait, deadlock, the table has just been renamed


class Writer(threading.Thread):
    """Inserts, updates and deletes rows of a table, which may be renamed meanwhile, until it is stopped."""

    def __init__(self, database_url: str, names: Sequence[str], *, seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._names, self._random = database_url, list(names), Random(seed)
        self._ended = threading.Event()
        self.transactions = 0
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        try:
            with closing(connect(self._url)) as connection:
                while not self._ended.wait(0.002):
                    self._write(connection)
        except Exception as error:  # noqa: BLE001 - the test shows it
            self.error = error

    def _write(self, connection: Any) -> None:
        try:
            with connection.cursor() as cursor:
                for statement in self._statements(self._names[0]):
                    cursor.execute(statement)
            connection.commit()
            self.transactions += 1
        except (errors.UndefinedTable, errors.DeadlockDetected, errors.SerializationFailure):
            self._write_elsewhere(connection)
        except pymysql.MySQLError as error:
            if error.args[0] not in _RETRIED:
                raise
            self._write_elsewhere(connection)

    def _write_elsewhere(self, connection: Any) -> None:
        """Write to the table under its other name: it may have been renamed."""
        connection.rollback()
        self._names.append(self._names.pop(0))

    def _statements(self, table: str) -> list[str]:
        newest = f"(SELECT * FROM (SELECT max(id) - 60 FROM {table}) t)"  # MySQL wants the inner one
        some = f"WHERE id % 17 = {self._random.randrange(17)} AND id > {newest}"
        return [
            *[insert_into(table, self._url)] * self._random.randrange(1, 4),
            f"UPDATE {table} SET version = version + 1 {some}",
            *([f"DELETE FROM {table} {some}"] if self._random.random() < 0.1 else []),
        ]


def insert_into(table: str, url: str) -> str:
    """Return the statement for a row that has only defaults."""
    return f"INSERT INTO {table} {'() VALUES ()' if url.startswith('mysql') else 'DEFAULT VALUES'}"


def connect(url: str) -> Any:
    """Return a session with transactions."""
    address = urlsplit(url)
    if address.scheme != "mysql":
        return psycopg2.connect(url)
    return pymysql.connect(
        host=address.hostname or "",
        port=address.port or 0,
        user=address.username,
        database=address.path.strip("/"),
    )


# --- Sent tasks, compared with the changes --------------------------------------------------------------


def sent_to(broker: redis.Redis, queue: str) -> list[tuple[str, list[Any]]]:
    """Return the tasks in a queue without consumers, with their arguments."""
    found = []
    for raw in broker.lrange(queue, 0, -1):
        message = json.loads(raw)
        found.append((message["headers"]["task"], json.loads(b64decode(message["body"]))[0]))
    return found


def unlike(database_url: str, sent: Sequence[Sequence[Any]]) -> Counter[tuple[str, ...]]:
    """Return the changes in the ledger that were not sent, and those that were sent too often.

    A deleted row has no version: with PostgreSQL's default replica identity the log has only its key.
    """
    with closing(connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name, event, row_id, version FROM ledger")
        done = Counter(map(_key, cursor.fetchall()))
    found = Counter(map(_key, sent))
    return (done - found) + (found - done)


def _key(row: Sequence[Any]) -> tuple[str, ...]:
    table, event, number, version = map(str, row)
    kind = "shelf" if "shelf" in table else "item"
    return kind, event, number, "" if event == "delete" else version
