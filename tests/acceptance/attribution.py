"""No change is attributed to the wrong transaction: python -m tests.acceptance.attribution --help.

Eight clients write transactions with and without a context, with savepoints, rollbacks and now and then thousands of
rows, and each row says of itself which context it was written under, and the how-manieth of its transaction it is. The
listener is killed meanwhile. Each task is then compared with its row. Prints its seed; exit status 1 if one is wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import psycopg2
import pymysql
import redis
import typer
from pymysql.constants import CLIENT

from cdc_tasks.routing.contexts import CONTEXT_HEADER
from harness.listener_process import mortal
from harness.waiting import wait_until
from listener.mysql.client.connection import Address
from tests.conftest import fresh_database, fresh_mysql_database

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Attribution", "Report", "attribute"]

Source = Literal["pgoutput", "wal2json", "mysql", "mariadb"]

_CLIENTS: Final = 8
_DEADLOCK: Final = 1213
_LARGE: Final = 3_000  # rows of a large transaction: some hundred kilobytes
_MARKS: Final = (
    "CREATE TABLE cdc_tasks_marks (id CHAR(36) CHARACTER SET ascii PRIMARY KEY,"
    " says MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL) ENGINE = InnoDB"
)
_ITEMS: Final = "CREATE TABLE items (id bigint PRIMARY KEY, written int, place int, truth varchar(2000))"
_ROUTES: Final = """
from listener.router import BinlogRouter

def seen(change):
    row = change.row
    return [row["id"], row["written"], row["place"], row["truth"], change.context, *change.transaction]

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", "insert", "check.item", queue="cdc_bulk", args=seen)
    router.accept("check.*")
    return router
"""


@dataclass(slots=True)
class Report:
    """What came."""

    committed: int = 0  # transactions
    rows: int = 0  # and enqueued tasks, that have come
    kills: int = 0
    wrong: list[str] = field(default_factory=list)


class _Script:
    """One transaction as SQL, and what is true of it."""

    def __init__(self, random: Random, number: int, ids: Iterator[int], *, is_binlog: bool) -> None:
        self._random, self._number, self._ids, self._is_binlog = random, number, ids, is_binlog
        self.statements = ["BEGIN"]
        self.rows = 0  # that stay
        self.tasks: list[int] = []  # ids of those that stay
        self._context: dict[str, Any] = {}
        self._savepoints = count()

    def write(self) -> bool:
        """Make the transaction; return whether it commits."""
        if self._random.random() < 0.75:
            self._say()
        self._some(depth=0)
        commits = self._random.random() < 0.9
        self.statements.append("COMMIT" if commits else "ROLLBACK")
        return commits

    def _some(self, depth: int) -> None:
        for _ in range(self._random.randint(1, 3)):
            kind = self._random.random()
            if kind < 0.6:
                self._insert(_LARGE if self._random.random() < 0.002 else self._random.randint(1, 4))
            elif kind < 0.75:
                self._say()
            elif kind < 0.85:
                self._enqueue()
            elif depth < 2:
                self._nested(depth)

    def _nested(self, depth: int) -> None:
        name, before = f"s{next(self._savepoints)}", (self.rows, len(self.tasks), self._context)
        self.statements.append(f"SAVEPOINT {name}")
        self._some(depth + 1)
        if self._random.random() < 0.5:
            self.statements.append(f"ROLLBACK TO SAVEPOINT {name}")
            self.rows, kept, self._context = before
            del self.tasks[kept:]

    def _insert(self, rows: int) -> None:
        truth = f"'{json.dumps(self._context)}'" if self._context else "NULL"
        values = ", ".join(
            f"({next(self._ids)}, {self._number}, {self.rows + place}, {truth})" for place in range(rows)
        )
        self.statements.append(f"INSERT INTO items VALUES {values}")
        self.rows += rows

    def _say(self) -> None:
        said = {"transaction": self._number, self._random.choice("abc"): self._random.randint(0, 9)}
        self._context = {**self._context, **said}
        self._mark({"context": said})

    def _enqueue(self) -> None:
        task = next(self._ids)
        self.tasks.append(task)
        args = [task, self._number, json.dumps(self._context) if self._context else None]
        self._mark({"enqueue": {"task": "check.task", "args": args, "options": {"queue": "cdc_bulk"}}})

    def _mark(self, says: dict[str, Any]) -> None:
        text = json.dumps(says)
        if not self._is_binlog:
            spacer = ", pg_logical_emit_message(true, 'cdc_tasks_spacer', '')" if "context" in says else ""
            self.statements.append(f"SELECT pg_logical_emit_message(true, 'cdc_tasks', '{text}'){spacer}")
            return
        name = UUID(int=self._random.getrandbits(128))
        hexadecimal = text.encode().hex()
        self.statements += [
            f"INSERT INTO cdc_tasks_marks VALUES ('{name}', X'{hexadecimal}')",
            f"DELETE FROM cdc_tasks_marks WHERE id = '{name}'",
        ]


class Attribution:
    """One run on one database, into one broker."""

    def __init__(self, database: Any, broker_url: str, source: Source, *, seed: int) -> None:
        self._database, self._source, self._seed = database, source, seed
        self._client = redis.Redis.from_url(broker_url)
        self._is_binlog = source in {"mysql", "mariadb"}
        self._numbers, self._ids = count(), count()
        self._lock = threading.Lock()
        self._expected: dict[
            int, tuple[int, int]
        ] = {}  # transaction -> rows and tasks that are still to come
        self._last: dict[int, list[int]] = {}  # transaction -> places of rows that were told to be the last
        self._ends: dict[int, int] = {}  # transaction -> its rows
        self._transactions: dict[str, int] = {}  # what the listener calls it
        self._seen: set[int] = set()
        self._is_over = threading.Event()
        self.report = Report()
        if self._is_binlog:
            database.execute(_MARKS)
        database.execute(_ITEMS)
        self._environment = {
            **os.environ, "DATABASE_URL": database.url, "CELERY_BROKER_URL": broker_url, "CACHE_URL": broker_url,
            "CDC_NAME": database.name, "CDC_ROUTES": "routes_of_check:setup", "CDC_BATCH_SIZE": "97",
            **({} if self._is_binlog else {"CDC_PLUGIN": source}),
        }  # fmt: skip

    def run(self, transactions: int, *, kills: int) -> Report:
        """Write, kill the listener as often, and compare all that comes."""
        with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
            (Path(text) / "routes_of_check.py").write_text(_ROUTES)
            self._environment["PYTHONPATH"] = f"{text}:{os.environ.get('PYTHONPATH', '')}"
            attacker = threading.Thread(target=self._attack, args=(kills,))
            reader = threading.Thread(target=self._read)
            clients = [
                threading.Thread(target=self._write, args=(number, transactions // _CLIENTS))
                for number in range(_CLIENTS)
            ]
            self._started = threading.Event()
            attacker.start()
            stack.callback(attacker.join)
            stack.callback(self._is_over.set)
            wait_until(self._started.is_set, what="the listener", timeout=60)
            for each in (reader, *clients):
                each.start()
            for each in clients:
                each.join()
            wait_until(lambda: not self._missing() or self.report.wrong, what="all tasks", timeout=600)
            self._is_over.set()
            reader.join()
        self._check_last()
        return self.report

    def _missing(self) -> dict[int, tuple[int, int]]:
        with self._lock:
            return {number: left for number, left in self._expected.items() if any(left)}

    def _attack(self, kills: int) -> None:
        random = Random(self._seed)
        while not self._is_over.is_set():
            with subprocess.Popen(
                mortal([sys.executable, "-m", "listener", "run"]),
                env=self._environment,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                for line in process.stderr or ():
                    if "streaming" in line:
                        break
                threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()  # at once
                wait_until(self._reads, what="the listener to read", timeout=60)
                self._started.set()
                has_kills = self.report.kills < kills
                self._is_over.wait(random.uniform(0.3, 1.5) if has_kills else None)
                if has_kills and not self._is_over.is_set():
                    self.report.kills += 1
                process.kill()

    def _reads(self) -> bool:
        if self._is_binlog:
            rows = self._database.fetch("SHOW PROCESSLIST")
            return any(str(row[4]).startswith("Binlog Dump") for row in rows)
        slots = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn IS NOT NULL"
        return bool(self._database.fetch(slots, self._database.name))

    def _write(self, client: int, transactions: int) -> None:
        random = Random(f"{self._seed}-{client}")
        with self._session() as run:
            for _ in range(transactions):
                number = next(self._numbers)
                script = _Script(random, number, self._ids, is_binlog=self._is_binlog)
                commits = script.write()
                if commits:
                    with self._lock:
                        self._expected[number] = script.rows, len(script.tasks)
                        self._ends[number] = script.rows
                        self.report.committed += 1
                try:
                    run(script.statements)
                except pymysql.err.OperationalError as error:
                    if error.args[0] != _DEADLOCK:
                        raise
                    with self._lock:  # the server has rolled it back
                        self.report.committed -= commits
                        self._expected.pop(number, None)
                        self._ends.pop(number, None)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        if not self._is_binlog:
            with closing(psycopg2.connect(self._database.url)) as connection:
                connection.autocommit = True
                cursor = connection.cursor()
                yield lambda statements: cursor.execute("; ".join(statements))
            return
        address = Address.parse(self._database.url)
        connection = pymysql.connect(
            host=address.host, port=address.port, user=address.user, password=address.password or "",
            database=self._database.name, client_flag=CLIENT.MULTI_STATEMENTS, autocommit=True,
        )  # fmt: skip
        with closing(connection):
            cursor = connection.cursor()

            def run(statements: list[str]) -> None:
                cursor.execute("; ".join(statements))
                while cursor.nextset():
                    pass

            yield run

    def _read(self) -> None:
        while not self._is_over.is_set():
            found: Any = self._client.rpop("cdc_bulk", 500)
            if not found:
                time.sleep(0.005)
            for each in found or ():
                self._compare(json.loads(each))

    def _compare(self, message: dict[str, Any]) -> None:
        args, header = json.loads(b64decode(message["body"]))[0], message["headers"].get(CONTEXT_HEADER)
        is_row = message["headers"]["task"] == "check.item"
        number, truth = args[1], args[3] if is_row else args[2]
        expected = None if truth is None else json.loads(truth)
        self.report.rows += 1
        if args[0] in self._seen:
            self._wrong(f"{args[0]} came twice")
            return
        self._seen.add(args[0])
        if header != expected:
            self._wrong(f"{args[0]} of {number}: the header is {header}, not {expected}")
        with self._lock:
            rows, tasks = self._expected.get(number, (-1, -1))
            self._expected[number] = (rows - 1, tasks) if is_row else (rows, tasks - 1)
        if rows < 0:
            self._wrong(f"{args[0]} of {number}, which was rolled back, came")
        if is_row:
            self._compare_row(args, expected)

    def _compare_row(self, args: list[Any], expected: Any) -> None:
        _, number, place, _, context, name, its_number, is_last = args
        if context != expected:
            self._wrong(f"row {place} of {number}: the context is {context}, not {expected}")
        if self._transactions.setdefault(name, number) != number:
            self._wrong(f"row {place} of {number} is said to be of {name}")
        if its_number <= place:
            self._wrong(f"row {place} of {number} has the number {its_number}")
        if is_last:
            self._last.setdefault(number, []).append(place)

    def _check_last(self) -> None:
        for number, rows in self._ends.items():
            if self._last.get(number, []) != ([rows - 1] if rows else []):
                self._wrong(f"{number} has {rows} rows, and said to be the last: {self._last.get(number)}")

    def _wrong(self, what: str) -> None:
        self.report.wrong.append(what)


# --- The command -------------------------------------------------------------------------------------------


def main(
    *,
    transactions: Annotated[int, typer.Option(help="Of all clients together.")] = 100_000,
    kills: Annotated[int, typer.Option(help="Of the listener.")] = 50,
    source: Annotated[Source, typer.Option()] = "pgoutput",
    seed: Annotated[int | None, typer.Option(help="Of what the clients do.")] = None,
) -> None:
    """Write, kill, compare."""
    chosen = Random().randrange(1 << 32) if seed is None else seed
    typer.echo(f"seed {chosen}")
    began = time.monotonic()
    report = attribute(transactions, kills=kills, source=source, seed=chosen)
    typer.echo(
        f"{report.committed:,} transactions, {report.rows:,} rows and tasks, {report.kills} kills, "
        f"{len(report.wrong)} wrong, in {time.monotonic() - began:,.0f} s"
    )
    for kind, times in Counter(report.wrong[:20]).items():
        typer.echo(f"{times} {kind}", err=True)
    raise typer.Exit(bool(report.wrong))


def attribute(transactions: int, *, kills: int, source: Source, seed: int) -> Report:
    """Start the servers, write, kill, compare."""
    with ExitStack() as stack:
        server, broker = _servers(source, stack)
        fresh: Any = fresh_mysql_database if source in {"mysql", "mariadb"} else fresh_database
        database = stack.enter_context(fresh(server))
        return Attribution(database, broker, source, seed=seed).run(transactions, kills=kills)


def _servers(source: Source, stack: ExitStack) -> tuple[Any, str]:
    from harness.embedded_servers import PostgresServer, ValkeyServer
    from harness.machine_servers import DebianPostgresServer
    from harness.mysql_servers import MariaDBServer, MySQLServer

    small = {"logical_decoding_work_mem": "64kB"}  # large transactions are spilled
    kinds: dict[str, Any] = {
        "pgoutput": lambda: PostgresServer(settings=small),
        "wal2json": lambda: DebianPostgresServer(settings=small),
        "mysql": MySQLServer,
        "mariadb": MariaDBServer,
    }
    broker = stack.enter_context(ValkeyServer())
    return stack.enter_context(kinds[source]()), broker.url


if __name__ == "__main__":
    typer.run(main)
