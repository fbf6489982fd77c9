"""Clients that write to MySQL or MariaDB at the same time: small and large transactions, some rolled back.

Between the rows they enqueue tasks, which they note in the journal as triggers note rows.
"""

from __future__ import annotations

import random
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

import pymysql

import cdc_tasks

if TYPE_CHECKING:
    from tests.support.mysql.source import MySQLDatabase

__all__ = ["BinlogWriters"]

_CLIENTS = 4
_DEADLOCK = (1205, 1213)
_SERVER_GONE = (0, 1053, 1927, 2003, 2006, 2013, 2055)


class BinlogWriters:
    """Write from entering to leaving."""

    def __init__(self, database: MySQLDatabase, *, seed: int, pause: float = 0.02) -> None:
        """`pause`: seconds, at most, between two transactions of a client."""
        self._database = database
        self._pause = pause
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=[random.Random(f"{seed} {number}")], daemon=True)
            for number in range(_CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, dice: random.Random) -> None:
        try:
            while not self._ended.is_set():
                try:
                    self._write_until_the_end(dice)
                except (pymysql.OperationalError, pymysql.InterfaceError) as error:
                    if error.args[0] not in _SERVER_GONE:
                        raise
                    self._ended.wait(0.1)
        except BaseException as error:  # noqa: BLE001  # told when the writers end
            self._errors.append(error)

    def _write_until_the_end(self, dice: random.Random) -> None:
        with closing(self._database.connect(autocommit=False)) as connection, connection.cursor() as cursor:
            while not self._ended.wait(dice.uniform(0, self._pause)):
                self._transaction(connection, cursor, dice)

    def _transaction(self, connection: Any, cursor: Any, dice: random.Random) -> None:
        try:
            for _ in range(dice.choice([1, 1, 1, 2, 5])):
                self._write(cursor, dice)
                self._enqueue(connection, cursor, dice)
            if dice.random() < 0.2:
                cursor.execute("SAVEPOINT half")
                self._write(cursor, dice)
                self._enqueue(connection, cursor, dice)
                cursor.execute("ROLLBACK TO half")
        except pymysql.OperationalError as error:
            if error.args[0] not in _DEADLOCK:
                raise
            connection.rollback()
            return
        if dice.random() < 0.1:
            connection.rollback()
        else:
            connection.commit()

    def _enqueue(self, connection: Any, cursor: Any, dice: random.Random) -> None:
        for number in range(dice.choices([0, 1, 20], [70, 28, 2])[0]):
            cdc_tasks.enqueue(connection, "chaos.enqueued", number, 'ü%"', None, queue="cdc_bulk")
            cursor.execute("INSERT INTO journal (what) VALUES ('tasks enqueued')")

    def _write(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(["accounts", "events"])
        kind = dice.choices(["insert", "many", "update", "delete", "other"], [40, 1, 35, 15, 9])[0]
        if kind == "insert":
            note = dice.choice([None, "", 'Grüße 🙂 "x" \\ \'', "x" * dice.randint(1, 1500)])
            cursor.execute(
                f"INSERT INTO {table} (owner, amount, note) VALUES (%s, %s, %s), (%s, NULL, NULL)",
                [dice.randint(1, 50), f"{dice.uniform(-1e9, 1e9):.10f}", note, dice.randint(1, 50)],
            )
        elif kind == "many":
            rows = ", ".join(f"({dice.randint(1, 50)})" for _ in range(1500))
            cursor.execute(f"INSERT INTO {table} (owner) VALUES {rows}")
        elif kind == "update":
            cursor.execute(
                f"UPDATE {table} SET version = version + 1, amount = %s WHERE owner = %s ORDER BY id DESC LIMIT 3",
                [f"{dice.uniform(-10, 10):.5f}", dice.randint(1, 50)],
            )
        elif kind == "delete":
            cursor.execute(f"DELETE FROM {table} WHERE owner = %s ORDER BY id LIMIT 2", [dice.randint(1, 50)])
        else:
            cursor.execute("INSERT INTO unwatched (note) VALUES ('nobody looks')")
