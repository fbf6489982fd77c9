"""Clients write to MySQL or MariaDB while tables are redefined, and the listener is stopped and killed.

What was committed is in a ledger, which is written in the writers' own transactions; what arrived is held against it.
The same seed makes the same decisions, though not at the same moments.
"""

from __future__ import annotations

import json
import random
import threading
import time
from base64 import b64decode
from collections import Counter
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Final, Self

import pymysql
import redis

from harness.embedded_servers import ValkeyServer
from harness.given_mysql import server_of_kind
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from tests.support.mysql.source import MySQLDatabase

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Definitions", "disturbed"]

_DATABASE: Final = "definitions"
_CLIENTS: Final = 3
# What a writer meets while somebody else redefines its table: no such table, partition or column, a lock, a deadlock.
_OUTRUN: Final = frozenset(
    {1146, 1526, 1054, 1205, 1213, 1412, 1615, 1020, 1062, 1493, 1507, 1517, 1731, 1736}
)
_TABLE: Final = (
    "(id bigint NOT NULL PRIMARY KEY, note varchar(20), mark int NOT NULL, label varchar(40) NOT NULL)"
    " CHARACTER SET utf8mb4"
)
_PARTITIONED: Final = (
    "(id bigint NOT NULL PRIMARY KEY, note varchar(20), mark int NOT NULL, label varchar(40) NOT NULL)"
    " CHARACTER SET utf8mb4 PARTITION BY RANGE (id)"
    " (PARTITION a VALUES LESS THAN (300), PARTITION b VALUES LESS THAN (600), PARTITION z VALUES LESS THAN MAXVALUE)"
)
_TYPES: Final = (
    *(
        "int",
        "bigint unsigned DEFAULT 7",
        "varchar(30) DEFAULT 'grün'",
        "text",
        "decimal(20,5)",
        "datetime(3)",
    ),
    *("enum('a','b') DEFAULT 'b'", "json", "binary(16)", "bit(9) DEFAULT b'101'", "double", "time(6)"),
)

_CHANGES: Final = (
    *("mark bigint NOT NULL", "mark int NOT NULL", "label varchar(300) NOT NULL", "label text NOT NULL"),
    *("label varchar(40) CHARACTER SET latin1 NOT NULL", "label varchar(40) NOT NULL"),
)
_LEDGER: Final = (
    "CREATE TABLE ledger"
    " (number bigint AUTO_INCREMENT PRIMARY KEY, place varchar(20), event varchar(10), mark int)"
)


class Definitions:
    """The tables, those who write to them, and the one who redefines them; from entering to leaving."""

    def __init__(self, database: MySQLDatabase, *, seed: int) -> None:
        self._database = database
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._marks = iter(range(1, 10**9))
        self._lock = threading.Lock()
        self._names = ["p0", "p1", "p2", "q0"]
        self.emptied: Counter[str] = Counter()  # TRUNCATEs by table
        self.done: Counter[str] = Counter()  # definitions by kind
        database.execute(
            *(f"CREATE TABLE {name} {_PARTITIONED if name == 'q0' else _TABLE}" for name in self._names),
            _LEDGER,
        )
        dice = [random.Random(f"{seed} {number}") for number in range(_CLIENTS + 1)]
        self._threads = [
            threading.Thread(target=self._run, args=[self._write, each], daemon=True) for each in dice[1:]
        ]
        self._threads.append(threading.Thread(target=self._run, args=[self._redefine, dice[0]], daemon=True))

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

    def committed(self) -> Counter[tuple[str, str, int]]:
        """Return how often each change was committed: table, event, mark."""
        rows = self._database.fetch("SELECT place, event, mark FROM ledger")
        found = Counter((str(table), str(event), int(mark)) for table, event, mark in rows)
        found.update({(table, "truncate", 0): times for table, times in self.emptied.items()})
        return found

    def _run(self, step: Callable[[Any, random.Random], None], dice: random.Random) -> None:
        try:
            with closing(self._database.connect(autocommit=False)) as connection:
                connection.cursor().execute("SET SESSION lock_wait_timeout = 2, innodb_lock_wait_timeout = 2")
                while not self._ended.wait(dice.uniform(0, 0.02)):
                    try:
                        step(connection, dice)
                    except pymysql.MySQLError as error:
                        connection.rollback()
                        if error.args[0] not in _OUTRUN:
                            raise
        except BaseException as error:  # noqa: BLE001  # told when the threads end
            self._errors.append(error)

    # Rows.

    def _write(self, connection: Any, dice: random.Random) -> None:
        with connection.cursor() as cursor:
            for _ in range(dice.choice([1, 1, 2, 5])):
                event = dice.choices(["insert", "update", "delete"], [50, 30, 20])[0]
                self._change(cursor, event, dice.choice(self._names), dice)
            if dice.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()

    def _change(self, cursor: Any, event: str, table: str, dice: random.Random) -> None:
        with self._lock:
            mark, row = next(self._marks), dice.randint(1, 900)
        if event == "insert":
            count = dice.choice([1, 1, 1, 20])
            rows = [(row + number, mark, f"m{mark}") for number in range(count)]
            values = ", ".join(f"({each}, {number}, '{label}')" for each, number, label in rows)
            changed = cursor.execute(f"INSERT IGNORE INTO {table} (id, mark, label) VALUES {values}")
        elif event == "update":
            changed = cursor.execute(
                f"UPDATE {table} SET mark = {mark}, label = 'm{mark}' WHERE id BETWEEN {row} AND {row + 3}"
            )
        else:
            cursor.execute(f"SELECT id, mark FROM {table} WHERE id >= {row} LIMIT 1 FOR UPDATE")
            found = cursor.fetchall()
            changed = cursor.execute(f"DELETE FROM {table} WHERE id = {found[0][0]}") if found else 0
            mark = found[0][1] if found else 0
        for _ in range(changed):
            cursor.execute(f"INSERT INTO ledger (place, event, mark) VALUES ('{table}', '{event}', {mark})")

    # Definitions.

    def _redefine(self, connection: Any, dice: random.Random) -> None:
        kinds = {
            "add column": self._add_column,
            "drop column": self._drop_column,
            "rename column": self._rename_column,
            "change type": self._change_type,
            "swap": self._swap,
            "drop and create": self._drop_and_create,
            "new table": self._new_table,
            "truncate": self._truncate,
            "exchange partition": self._exchange_partition,
            "add partition": self._add_partition,
            "drop partition": self._drop_partition,
            "rotate": lambda cursor, _: cursor.execute("FLUSH BINARY LOGS"),
        }
        kind = dice.choice(list(kinds))
        with connection.cursor() as cursor:
            kinds[kind](cursor, dice)
        connection.commit()
        self.done[kind] += 1

    def _columns(self, cursor: Any, table: str) -> list[str]:
        cursor.execute(f"SHOW COLUMNS FROM {table}")
        return [row[0] for row in cursor.fetchall() if row[0] not in {"id", "mark", "label"}]

    def _add_column(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(self._names)
        if len(self._columns(cursor, table)) < 12:
            place = dice.choice(["FIRST", "AFTER id", "AFTER mark", ""])
            column = f"c{dice.randrange(10**6)}"
            cursor.execute(f"ALTER TABLE {table} ADD COLUMN {column} {dice.choice(_TYPES)} {place}")

    def _drop_column(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(self._names)
        if columns := self._columns(cursor, table):
            cursor.execute(f"ALTER TABLE {table} DROP COLUMN {dice.choice(columns)}")

    def _rename_column(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(self._names)
        if columns := self._columns(cursor, table):
            new = f"r{dice.randrange(10**6)}"
            cursor.execute(f"ALTER TABLE {table} RENAME COLUMN {dice.choice(columns)} TO {new}")

    def _change_type(self, cursor: Any, dice: random.Random) -> None:
        change = dice.choice(_CHANGES)
        cursor.execute(f"ALTER TABLE {dice.choice(self._names)} MODIFY COLUMN {change}")

    def _swap(self, cursor: Any, dice: random.Random) -> None:
        one, other = dice.sample([name for name in self._names if name[0] == "p"], 2)
        cursor.execute(f"RENAME TABLE {one} TO away, {other} TO {one}, away TO {other}")

    def _drop_and_create(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(self._names)
        cursor.execute(f"DROP TABLE {table}")
        cursor.execute(f"CREATE TABLE {table} {_PARTITIONED if table[0] == 'q' else _TABLE}")

    def _new_table(self, cursor: Any, dice: random.Random) -> None:
        if len(self._names) < 9:
            name = f"{dice.choice('ppq')}{len(self._names)}"
            cursor.execute(f"CREATE TABLE {name} {_PARTITIONED if name[0] == 'q' else _TABLE}")
            self._names.append(name)

    def _truncate(self, cursor: Any, dice: random.Random) -> None:
        table = dice.choice(self._names)
        cursor.execute(f"TRUNCATE TABLE {table}")
        self.emptied[table] += 1

    def _partitioned(self, cursor: Any, dice: random.Random) -> tuple[str, list[str]]:
        table = dice.choice([name for name in self._names if name[0] == "q"])
        cursor.execute(
            "SELECT PARTITION_NAME FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
            [_DATABASE, table],
        )
        return table, [row[0] for row in cursor.fetchall()]

    def _exchange_partition(self, cursor: Any, dice: random.Random) -> None:
        table, partitions = self._partitioned(cursor, dice)
        cursor.execute("DROP TABLE IF EXISTS x")
        cursor.execute(
            f"ALTER TABLE {table} FORCE"
        )  # columns that were added at once keep it from being exchanged
        cursor.execute(f"CREATE TABLE x LIKE {table}")
        cursor.execute("ALTER TABLE x REMOVE PARTITIONING")
        cursor.execute(f"ALTER TABLE {table} EXCHANGE PARTITION {dice.choice(partitions)} WITH TABLE x")
        cursor.execute("DROP TABLE x")

    def _add_partition(self, cursor: Any, dice: random.Random) -> None:
        table, partitions = self._partitioned(cursor, dice)
        if len(partitions) < 6:
            low = dice.randint(601, 900)
            name = f"n{low}"
            cursor.execute(
                f"ALTER TABLE {table} REORGANIZE PARTITION z INTO (PARTITION {name} VALUES LESS THAN ({low}),"
                " PARTITION z VALUES LESS THAN MAXVALUE)"
            )

    def _drop_partition(self, cursor: Any, dice: random.Random) -> None:
        table, partitions = self._partitioned(cursor, dice)
        if droppable := [name for name in partitions if name != "z"]:
            cursor.execute(f"ALTER TABLE {table} DROP PARTITION {dice.choice(droppable)}")


def disturbed(
    kind: str,
    *,
    seed: int,
    stops: int,
    said: Callable[[str], None] = print,
    counted: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Stop and kill the listener so often meanwhile; returns what is wrong in the end.

    `counted` is told how many changes were committed.
    """
    dice = random.Random(seed)
    with ExitStack() as stack:
        server = stack.enter_context(server_of_kind(kind))
        broker = stack.enter_context(ValkeyServer())
        MySQLDatabase(name="mysql", server=server).execute(f"CREATE DATABASE {_DATABASE}")
        database = MySQLDatabase(name=_DATABASE, server=server)
        environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url_of(0),
            "CACHE_URL": broker.url_of(1),
            "CDC_NAME": "chaos",
            "CDC_ROUTES": "tests.acceptance.binlog_routes:setup_definitions",
        }
        definitions = Definitions(database, seed=seed)
        with ListenerProcess(environment) as first:
            first.wait_for("streaming", timeout=60)
            client = stack.enter_context(redis.Redis.from_url(broker.url_of(0)))
            wait_until(lambda: client.keys("*cdc:chaos:checkpoint"), what="the first checkpoint")
        with definitions:
            for number in range(1, stops + 1):
                said(f"{number}: {_disturb(environment, dice)}; {client.llen('cdc_bulk')} messages")
        expected = definitions.committed()
        with ListenerProcess(environment) as last:
            wait_until(
                lambda: last.check_alive() or client.llen("cdc_bulk") >= expected.total(),
                timeout=120,
                what=f"{expected.total()} messages",
            )
            last.stop()
        said(
            f"{expected.total()} changes; "
            + ", ".join(f"{n} x {each}" for each, n in definitions.done.items())
        )
        counted(expected.total())
        return _faults(client, expected)


def _disturb(environment: dict[str, str], dice: random.Random) -> str:
    """Let a listener run for a moment, and end it in one of two ways."""
    with ListenerProcess(environment) as listener:
        if dice.random() < 0.9:
            listener.wait_for("streaming", timeout=60)
        time.sleep(dice.uniform(0, 1))
        listener.check_alive()
        if dice.random() < 0.3:
            listener.stop()
            return "stopped"
        listener.kill()
        return "killed"


def _faults(client: redis.Redis, expected: Counter[tuple[str, str, int]]) -> list[str]:
    faults, arrived = [], Counter[tuple[str, str, int]]()
    tasks: set[str] = set()
    for raw in reversed(client.lrange("cdc_bulk", 0, -1)):
        envelope = json.loads(raw)
        (change,) = json.loads(b64decode(envelope["body"]))[0]
        row: dict[str, Any] = change["after"] or change["before"] or {}
        arrived[change["table"], change["event"], int(row.get("mark", 0))] += 1
        if row and row.get("label") != f"m{row.get('mark')}":
            faults.append(f"wrong values: {change}")
        if envelope["headers"]["id"] in tasks:
            faults.append(f"twice: {change}")
        tasks.add(envelope["headers"]["id"])
    faults += [f"missing {times} x {each}" for each, times in (expected - arrived).items()]
    faults += [f"too many, {times} x {each}" for each, times in (arrived - expected).items()]
    return faults
