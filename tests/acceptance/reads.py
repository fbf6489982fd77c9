"""Attacks on backfills: listener, broker and database are killed while rows are read and clients write.

    make chaos ARGS="--target backfill --kills 20 --rows 50000 --seed 7"
    make chaos ARGS="--target backfill --kills 20 --rows 50000 --source mariadb"

The checker knows reads: each row that is there was delivered, by one read or by a change; each backfill reads a row
at most once; no row goes backwards; and who applies all that was sent, in its order, has the table.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg2
import pymysql
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.given_mysql import MariaDBServer, MySQLServer
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from tests.acceptance.checker import read_arguments
from tests.support.operators import Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["ReadAttacks", "faults_of_reads"]

_SERVERS: Final = {"postgresql": PostgresServer, "mysql": MySQLServer, "mariadb": MariaDBServer}
_NAME: Final = "kept_reads"
_QUEUE: Final = "cdc_bulk"
_CHUNK: Final = 100
_LAST: Final = -1  # the id of the row that ends the run
_RECOVERY: Final = 120.0  # seconds
_AT_ONCE: Final = 1_000  # rows of an INSERT
_STATEMENTS: Final = (
    "UPDATE kept SET v = v + 1 WHERE id BETWEEN %(row)s AND %(row)s + 5",
    "DELETE FROM kept WHERE id = %(row)s",
    "INSERT INTO kept VALUES (%(new)s, 1)",
    "UPDATE kept SET id = %(new)s, v = v + 1 WHERE id = %(row)s",
)


def faults_of_reads(sent: Sequence[Mapping[str, Any]], rows: Mapping[int, int]) -> list[str]:
    """Return what is wrong with the changes and reads that were sent; `rows`: the version of each row that is there."""
    found = [f"id {name} is there {count} times" for name, count in _repeated(each["id"] for each in sent)]
    state: dict[int, int] = {}
    newest: dict[int, int] = {}
    for each in sent:
        before, after = each["before"], each["after"]
        for row in (before, after):
            if row is not None:
                state.pop(row["id"], None)
        if after is not None:
            key, version = after["id"], after["v"]
            if version < newest.get(key, 0):
                found.append(f"row {key} went back from {newest[key]} to {version} by a {each['event']}")
            newest[key], state[key] = version, version
    found += [
        f"row {key} with version {v} was not delivered" for key, v in rows.items() if state.get(key) != v
    ]
    found += [f"row {key} was delivered last as if it were there" for key in state.keys() - rows.keys()]
    return found


def _changes(messages: Iterable[bytes]) -> list[Mapping[str, Any]]:
    return [read_arguments(json.loads(raw))[0] for raw in messages]


def _repeated(values: Any) -> list[tuple[Any, int]]:
    return [(value, count) for value, count in Counter(values).items() if count > 1]


class ReadAttacks:
    """A database with rows, a broker whose file is always on disk, clients that write, and a listener."""

    def __init__(
        self, *, seed: int, rows: int, source: str = "postgresql", said: Callable[[str], None] = print
    ) -> None:
        """`source` is postgresql, mysql or mariadb."""
        self._dice, self._rows, self._said = random.Random(seed), rows, said
        self._stack = ExitStack()
        self._database = self._stack.enter_context(_SERVERS[source]())
        self._url = (
            self._database.url
            if isinstance(self._database, PostgresServer)
            else self._database.create_database(_NAME)
        )
        self._broker = self._stack.enter_context(
            ValkeyServer(append_only=True, arguments=["--appendfsync", "always"])
        )
        self._stop = threading.Event()
        self._writers = [threading.Thread(target=self._write, args=(number,)) for number in range(2)]
        self._environment = {
            "DATABASE_URL": self._url,
            "CELERY_BROKER_URL": self._broker.url,
            "CACHE_URL": self._broker.url,
            "CDC_NAME": _NAME,
            "CDC_ROUTES": "tests.acceptance.chaos_routes:setup_reads",
            "CDC_DURABILITY": "fsync",
        }
        self._listener: ListenerProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_writers()
        if self._listener is not None:
            self._listener.close()
        self._stack.close()

    def run(self, kills: int) -> list[str]:
        """Attack in the middle of backfills, of the whole table each, and return what is wrong."""
        self._execute("CREATE TABLE kept (id bigint PRIMARY KEY, v bigint NOT NULL)")
        for first in range(1, self._rows + 1, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, self._rows + 1))
            self._execute("INSERT INTO kept VALUES " + ", ".join(f"({number}, 1)" for number in numbers))
        listener = self._start()
        for each in self._writers:
            each.start()
        self._give()
        for number in range(kills):
            self._wait_for_reads()
            attack = self._dice.choice((self._kill_listener, self._kill_broker, self._kill_database))
            self._said(f"{number + 1}: {attack()}; {self._count()} messages")
        wait_until(self._is_idle, timeout=_RECOVERY + self._rows / 500, what="the last backfill")
        self._end_writers()
        self._execute(f"INSERT INTO kept VALUES ({_LAST}, 1)")
        wait_until(self._has_ended, timeout=_RECOVERY, what="the last row")
        listener = self._running()
        assert listener.stop(timeout=60) == 0, listener.log[-3000:]
        with closing(redis.Redis.from_url(self._broker.url)) as client:
            sent = _changes(reversed(client.lrange(_QUEUE, 0, -1)))
        return faults_of_reads(sent, dict(self._fetch("SELECT id, v FROM kept")))

    # --- Attacks ------------------------------------------------------------------------------------------

    def _kill_listener(self) -> str:
        self._running().check_alive()
        self._running().close()
        self._start()
        return "listener killed"

    def _kill_broker(self) -> str:
        self._broker.kill()
        time.sleep(self._dice.choice([0, 1]))
        self._broker.start()
        return "broker killed"

    def _kill_database(self) -> str:
        self._database.kill()
        time.sleep(self._dice.choice([0, 1]))
        self._database.start()
        return "database killed"

    # --- The listener and its backfills -------------------------------------------------------------------

    def _start(self) -> ListenerProcess:
        self._listener = ListenerProcess(self._environment)
        self._listener.wait_for("streaming", timeout=_RECOVERY)
        return self._listener

    def _running(self) -> ListenerProcess:
        assert self._listener is not None
        return self._listener

    def _give(self) -> None:
        person = Operator(**self._environment)
        answer = person.asks("backfill", "kept", "--chunk", str(_CHUNK), "--wait", str(_RECOVERY))
        assert answer["done"], answer

    def _wait_for_reads(self) -> None:
        """Return when a backfill has come some way since now; gives one if none is being done."""
        if self._is_idle():
            self._give()
        before = self._progress()

        def went_on() -> bool:
            self._running().check_alive()
            return self._progress() > before + self._dice.choice([0, 300]) or self._is_idle()

        wait_until(went_on, timeout=_RECOVERY, what="more reads")

    def _backfills(self) -> dict[str, Any]:
        with closing(redis.Redis.from_url(self._broker.url, socket_timeout=10)) as client:
            return {
                name.decode(): json.loads(text)
                for name, text in client.hgetall(f"cdc:{_NAME}:backfills").items()
            }

    def _progress(self) -> int:
        found = self._backfills()
        return sum(
            each["rows"] + each["left_out"] for name, each in found.items() if name.endswith(":progress")
        )

    def _is_idle(self) -> bool:
        found = self._backfills()
        names = [name for name in found if not name.endswith(":progress")]
        failed = [each for each in found.values() if each.get("error")]
        assert not failed, failed
        return all(found.get(f"{name}:progress", {}).get("is_done") for name in names)

    def _count(self) -> int:
        with closing(redis.Redis.from_url(self._broker.url)) as client:
            return int(client.llen(_QUEUE))

    def _has_ended(self) -> bool:
        self._running().check_alive()
        with closing(redis.Redis.from_url(self._broker.url)) as client:
            newest = _changes(client.lrange(_QUEUE, 0, 50))
        return any(each["after"] is not None and each["after"]["id"] == _LAST for each in newest)

    # --- Clients ------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        if isinstance(self._database, PostgresServer):
            return psycopg2.connect(self._url, connect_timeout=5)
        connection = self._database.connect(_NAME)
        connection.autocommit(value=False)
        return connection

    def _write(self, number: int) -> None:
        dice, fresh = random.Random(f"{self._dice.random()}-{number}"), 10**9 * (number + 1)
        while not self._stop.is_set():
            with suppress(psycopg2.Error, pymysql.Error), closing(self._connect()) as connection:
                while not self._stop.wait(0.005):
                    fresh += 1
                    with connection.cursor() as cursor:
                        values = {"row": dice.randint(1, self._rows), "new": fresh}
                        cursor.execute(dice.choice(_STATEMENTS), values)
                    dice.choices([connection.commit, connection.rollback], [9, 1])[0]()
            self._stop.wait(0.2)

    def _end_writers(self) -> None:
        self._stop.set()
        for each in self._writers:
            if each.is_alive():
                each.join()

    def _execute(self, statement: str) -> None:
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            connection.commit()

    def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
