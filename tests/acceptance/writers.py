"""Clients that write as applications do: small and large transactions, interleaved ones, some taken back.

Between the rows they enqueue tasks, which they note in the journal as triggers note rows.

Each client is a thread with one seed: it decides the same on every run; what comes of it depends on the others, who
change the same rows.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any, Final, Self

import psycopg2
from psycopg2 import errors

import cdc_tasks

__all__ = ["LARGE", "Writers"]

Connection = Any  # psycopg2 has no types for its cursors' context managers that would help here

LARGE: Final = 10_000  # rows in a large transaction, if there are as many
_SHARE_OF_TASKS: Final = 0.2  # of the statements
_KINDS: Final = ("insert", "update", "delete")

# What passes: another client was first, or the server goes away.
_PASSES: Final = (
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
)

_INSERT: Final = {
    "accounts": """
        INSERT INTO accounts (owner, open, amount, tags, note)
        SELECT %(owner)s, n %% 3 > 0, n * 1.0000000001, ARRAY['a"b', NULL, 'ü%%' || n], jsonb_build_object('n', n)
        FROM generate_series(1, %(count)s) AS n""",
    "events": """
        INSERT INTO events (owner, title, body)
        SELECT %(owner)s, 'event ' || n, repeat(md5(n::text), CASE WHEN n %% 10 = 0 THEN 100 ELSE 1 END)
        FROM generate_series(1, %(count)s) AS n""",
}
_UPDATE: Final = {
    "accounts": """
        UPDATE accounts SET version = version + 1, open = (version %% 2 = 0), touched = clock_timestamp(),
          amount = CASE WHEN version %% 5 = 0 THEN NULL ELSE amount + 0.01 END
        WHERE id IN (SELECT id FROM accounts WHERE id >= %(start)s ORDER BY id LIMIT %(count)s)""",
    "events": """
        UPDATE events SET version = version + 1, title = title || '.',
          body = CASE WHEN version %% 3 = 0 THEN reverse(body) ELSE body END
        WHERE id IN (SELECT id FROM events WHERE id >= %(start)s ORDER BY id LIMIT %(count)s)""",
}
_DELETE: Final = """
    DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id >= %(start)s ORDER BY id LIMIT %(count)s)"""
_NEW_KEY: Final = """
    UPDATE {table} SET id = nextval(pg_get_serial_sequence('{table}', 'id'))
    WHERE id = (SELECT id FROM {table} WHERE id >= %(start)s ORDER BY id LIMIT 1)"""

_NOTE: Final = """INSERT INTO journal ("table", event, after) VALUES ('tasks', 'enqueued', %s)"""
_ENQUEUE: Final = """
    WITH tasks AS (
      SELECT gen_random_uuid() AS id, n FROM generate_series(1, %(count)s) AS n
    ), noted AS (
      INSERT INTO journal ("table", event, after)
      SELECT 'tasks', 'enqueued', jsonb_build_object('id', id, 'args', jsonb_build_array(n, 'ü%%"'))
      FROM tasks ORDER BY n
    )
    SELECT pg_logical_emit_message(true, 'cdc_tasks', json_build_object('enqueue', json_build_object(
      'task', 'chaos.enqueued', 'id', id, 'args', jsonb_build_array(n, 'ü%%"'),
      'options', json_build_object('queue', 'cdc_bulk')))::text)
    FROM tasks ORDER BY n"""


class Writers:
    """Several clients at work until the end of the `with` block."""

    def __init__(self, url: str, *, seed: int, clients: int = 4, rows_per_second: int = 1000) -> None:
        """`rows_per_second` of each client, on average: they are to keep a listener busy, not to bury it."""
        self._stop = threading.Event()
        self._clients = [
            _Client(url, random.Random(f"{seed}-{number}"), number, rows_per_second, self._stop)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()
        failures = [client.failure for client in self._clients if client.failure]
        if failures:
            raise failures[0]


class _Client(threading.Thread):
    def __init__(
        self, url: str, dice: random.Random, number: int, rows_per_second: int, stop: threading.Event
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self._url = url
        self._dice = dice
        self._number = number
        self._rows_per_second = rows_per_second
        self._stop_event = stop
        self._connections: list[Connection] = []
        self._rows = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop_event.is_set():
                self._rows = 0
                try:
                    self._choose()()
                except _PASSES:
                    self._leave()
                self._stop_event.wait(
                    0.01 + self._rows / self._rows_per_second * self._dice.uniform(0.5, 1.5)
                )
        except BaseException as failure:  # noqa: BLE001 - told by `Writers`
            self.failure = failure
        finally:
            self._leave()

    def _choose(self) -> Callable[[], None]:
        kinds = {
            self._small: 60,
            self._medium: 20,
            self._interleaved: 15,
            self._savepoints: 10,
            self._rolled_back: 8,
            self._large: 5,
            self._large_rolled_back: 1,
            self._truncate: 0.5,
            self._unwatched: 5,
        }
        return self._dice.choices(list(kinds), list(kinds.values()))[0]

    # --- Transactions -------------------------------------------------------------------------------------

    def _small(self) -> None:
        connection = self._connect(1)[0]
        for _ in range(self._dice.randint(1, 5)):
            self._statement(connection, self._dice.randint(1, 20))
        connection.commit()

    def _medium(self) -> None:
        connection = self._connect(1)[0]
        for kind in self._dice.sample(_KINDS, k=3):
            self._statement(connection, self._dice.randint(100, 500), kind)
        connection.commit()

    def _large(self) -> None:
        connection = self._connect(1)[0]
        for kind in self._dice.sample(_KINDS, k=self._dice.randint(1, 2)):
            self._statement(connection, LARGE + self._dice.randint(0, 5_000), kind)
        connection.commit()

    def _interleaved(self) -> None:
        """Three transactions at once, each with several statements in turn, ended in any order."""
        connections = self._connect(3)
        for _ in range(8):
            self._statement(self._dice.choice(connections), self._dice.randint(1, 5))
        self._dice.shuffle(connections)
        for connection in connections:
            connection.rollback() if self._dice.random() < 0.2 else connection.commit()

    def _savepoints(self) -> None:
        connection = self._connect(1)[0]
        self._statement(connection, 3)
        for depth in range(self._dice.randint(1, 4)):
            self._run(connection, f"SAVEPOINT s{depth}")
            self._statement(connection, self._dice.randint(1, 10))
            if self._dice.random() < 0.5:
                self._run(connection, f"ROLLBACK TO SAVEPOINT s{depth}")
        connection.commit()

    def _rolled_back(self) -> None:
        connection = self._connect(1)[0]
        self._statement(connection, self._dice.randint(1, 50))
        connection.rollback()

    def _large_rolled_back(self) -> None:
        connection = self._connect(1)[0]
        self._statement(connection, LARGE)
        connection.rollback()

    def _truncate(self) -> None:
        connection = self._connect(1)[0]
        self._statement(connection, 3)
        self._run(connection, f"TRUNCATE {self._dice.choice(['accounts', 'events', 'events, accounts'])}")
        self._statement(connection, 3)
        connection.commit()

    def _unwatched(self) -> None:
        connection = self._connect(1)[0]
        self._run(connection, "INSERT INTO unwatched (body) SELECT 'x' FROM generate_series(1, 20)")
        connection.commit()

    # --- Statements ---------------------------------------------------------------------------------------

    def _statement(self, connection: Connection, count: int, kind: str | None = None) -> None:
        """Insert, update or delete up to `count` rows of one table, or give one row another key, or enqueue tasks."""
        if self._dice.random() < _SHARE_OF_TASKS:
            self._enqueue(connection, count)
        table = self._dice.choice(["accounts", "events"])
        kind = kind or self._dice.choices([*_KINDS, "new key"], [35, 35, 28, 2])[0]
        statements = {
            "insert": _INSERT[table],
            "update": _UPDATE[table],
            "delete": _DELETE.format(table=table),
            "new key": _NEW_KEY.format(table=table),
        }
        values = {"owner": self._number, "count": count, "start": self._start(connection, table, count)}
        self._run(connection, statements[kind], values)

    def _enqueue(self, connection: Connection, count: int) -> None:
        """Enqueue one task from Python, or `count` of them in plain SQL."""
        if count > 1 and self._dice.random() < 0.5:
            self._run(connection, _ENQUEUE, {"count": count})
            return
        args = [self._number, 'ü%"', None]
        task_id = cdc_tasks.enqueue(connection, "chaos.enqueued", *args, queue="cdc_bulk")
        self._run(connection, _NOTE, [json.dumps({"id": task_id, "args": args})])

    def _start(self, connection: Connection, table: str, count: int) -> int:
        """Return an id from which on rows are changed: often among the newest, which everybody changes."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT coalesce(max(id), 0) FROM {table}")
            (newest,) = cursor.fetchone()
        reach = 200 + 2 * count if self._dice.random() < 0.7 else newest
        return max(0, newest - self._dice.randint(0, int(reach)))

    def _run(self, connection: Connection, statement: str, values: Any = None) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            self._rows += max(cursor.rowcount, 0)

    # --- Connections --------------------------------------------------------------------------------------

    def _connect(self, count: int) -> list[Connection]:
        while len(self._connections) < count:
            # A client that waits for another one's lock for long gives way.
            options = "-c deadlock_timeout=50 -c lock_timeout=1000"
            self._connections.append(psycopg2.connect(self._url, options=options, connect_timeout=5))
        return self._connections[:count]

    def _leave(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
