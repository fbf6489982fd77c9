"""No change is attributed to the wrong transaction: make chaos ARGS="--target context --changes 100000".

Eight clients, each a process, write transactions with and without a context, with savepoints, rollbacks and now and
then a thousand rows, which PostgreSQL spills to disk. Each row and each enqueued task says of itself in which
transaction it was written, under which context, and the how-manieth it is. The listener is killed meanwhile. What it
sends is compared with that: each transaction has to come whole, once, in its order, and nothing that was rolled back.

Clients wait when they are too far ahead, and little is kept of a transaction that has come. So there may be a million.

With wal2json: python -m tests.acceptance.attribution --source wal2json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from base64 import b64decode
from collections import Counter, deque
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import orjson
import psycopg2
import pymysql
import redis
import typer
from pymysql.constants import CLIENT

from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.enqueued import CREATE_MARKS
from harness.listener_process import mortal
from harness.waiting import wait_until
from listener.mysql.client.connection import Address
from tests.conftest import fresh_database, fresh_mysql_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

__all__ = ["Attribution", "Report", "attribute"]

Source = Literal["pgoutput", "wal2json", "mysql", "mariadb"]

_CLIENTS: Final = 8
_DEADLOCK: Final = 1213
_LARGE: Final = 1_000  # rows of a large transaction: more than PostgreSQL decodes in memory here
_GROUP: Final = 16  # transactions that PostgreSQL gets in one go
_MOST_OPEN: Final = 20_000  # transactions that are written and have not come, about
_ITEMS: Final = (
    "CREATE TABLE items (id bigint PRIMARY KEY, written int, place int, step int, truth varchar(2000))"
)
_ROUTES: Final = """
from listener.router import BinlogRouter

def seen(change):
    row = change.row
    return [row["written"], row["step"], row["truth"], row["place"], change.context, *change.transaction]

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


# --- What the clients write --------------------------------------------------------------------------------


class _Script:
    """One transaction as SQL, and what is true of it."""

    def __init__(self, random: Random, number: int, ids: Iterator[int], *, is_binlog: bool) -> None:
        self._random, self._number, self._ids, self._is_binlog = random, number, ids, is_binlog
        self.statements = ["BEGIN"]
        self.rows = self.tasks = 0  # that stay
        self._context: dict[str, Any] = {}
        self._savepoints = count()
        self._steps = count()
        self._needs_spacer = False  # the transaction has written, or is in a savepoint

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
                self._insert(_LARGE if self._random.random() < 0.0005 else self._random.randint(1, 4))
            elif kind < 0.75:
                self._say()
            elif kind < 0.85:
                self._enqueue()
            elif depth < 2:
                self._nested(depth)

    def _nested(self, depth: int) -> None:
        name, before = f"s{next(self._savepoints)}", (self.rows, self.tasks, self._context)
        self.statements.append(f"SAVEPOINT {name}")
        self._needs_spacer = True
        self._some(depth + 1)
        kind = self._random.random()
        if kind < 0.5:
            self.statements.append(f"ROLLBACK TO SAVEPOINT {name}")
            self.rows, self.tasks, self._context = before
        elif kind < 0.75:  # what follows is of the transaction around it
            self.statements.append(f"RELEASE SAVEPOINT {name}")

    def _insert(self, rows: int) -> None:
        truth = f"'{json.dumps(self._context)}'" if self._context else "NULL"
        values = ", ".join(
            f"({next(self._ids)}, {self._number}, {self.rows + place}, {next(self._steps)}, {truth})"
            for place in range(rows)
        )
        self.statements.append(f"INSERT INTO items VALUES {values}")
        self.rows += rows
        self._needs_spacer = True

    def _say(self) -> None:
        said = {"transaction": self._number, self._random.choice("abc"): self._random.randint(0, 9)}
        self._context = {**self._context, **said}
        self._mark({"context": said})

    def _enqueue(self) -> None:
        args = [self._number, next(self._steps), json.dumps(self._context) if self._context else None]
        self._mark({"enqueue": {"task": "check.task", "args": args, "options": {"queue": "cdc_bulk"}}})
        self.tasks += 1

    def _mark(self, says: dict[str, Any]) -> None:
        """Let the transaction say it, in the words of `cdc_tasks.outbox.transaction`."""
        text = json.dumps(says)
        if not self._is_binlog:
            spacer = ", pg_logical_emit_message(true, 'cdc_tasks_spacer', '')" if self._needs_spacer else ""
            self.statements.append(f"SELECT pg_logical_emit_message(true, 'cdc_tasks', '{text}'){spacer}")
            self._needs_spacer = True
            return
        name = UUID(int=self._random.getrandbits(128))
        hexadecimal = text.encode().hex()
        self.statements += [
            f"INSERT INTO cdc_tasks_marks VALUES ('{name}', X'{hexadecimal}')",
            f"DELETE FROM cdc_tasks_marks WHERE id = '{name}'",
        ]


class _Client:
    """One client, in a process of its own: it tells the checker of each transaction that it has committed."""

    def __init__(self, number: int, random: Random, tells: Connection, come: Any, *, is_binlog: bool) -> None:
        """`come`: how many transactions have come."""
        self._numbers = count(number, _CLIENTS)
        self._ids = count(number, _CLIENTS)
        self._random, self._tells, self._come, self._is_binlog = random, tells, come, is_binlog
        self._committed = 0

    def write(self, transactions: int, run: Callable[[Sequence[str]], bool]) -> None:
        """Write them, and never be far ahead of the checker."""
        size = 1 if self._is_binlog else _GROUP
        for start in range(0, transactions, size):
            while self._committed * _CLIENTS - self._come.value > _MOST_OPEN:
                time.sleep(0.01)
            self._write_group(min(size, transactions - start), run)
        self._tells.send_bytes(b"")

    def _write_group(self, size: int, run: Callable[[Sequence[str]], bool]) -> None:
        statements, committed = list[str](), array("q")
        for _ in range(size):
            number = next(self._numbers)
            script = _Script(self._random, number, self._ids, is_binlog=self._is_binlog)
            if script.write():
                committed.extend((number, script.rows, script.tasks))
            statements += script.statements
        if run(statements) and committed:
            self._committed += len(committed) // 3
            self._tells.send_bytes(committed.tobytes())


@contextmanager
def _session(source: Source, url: str, database: str) -> Iterator[Callable[[Sequence[str]], bool]]:
    """Yield what runs statements, and returns whether the server has not rolled them back."""
    if source in {"pgoutput", "wal2json"}:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SET synchronous_commit = off")

            def run_all(statements: Sequence[str]) -> bool:
                cursor.execute("; ".join(statements))
                return True

            yield run_all
        return
    address = Address.parse(url)
    opened = pymysql.connect(
        host=address.host, port=address.port, user=address.user, password=address.password or "",
        database=database, client_flag=CLIENT.MULTI_STATEMENTS, autocommit=True,
    )  # fmt: skip
    with closing(opened):
        cursor_of_mysql = opened.cursor()

        def run(statements: Sequence[str]) -> bool:
            try:
                cursor_of_mysql.execute("; ".join(statements))
                while cursor_of_mysql.nextset():
                    pass
            except pymysql.err.OperationalError as error:
                if error.args[0] != _DEADLOCK:
                    raise
                return False
            return True

        yield run


def _write(client: _Client, transactions: int, source: Source, url: str, database: str) -> None:
    with _session(source, url, database) as run:
        client.write(transactions, run)


# --- What has come -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A transaction of which something has come."""

    rows: int = 0
    tasks: int = 0
    step: int = -1  # of what came last
    name: str = ""  # what the listener calls the transaction
    last: int = -1  # the place of the row that was said to be the last


class _Ledger:
    """Compares what comes with what was committed; a transaction that has come whole is forgotten."""

    def __init__(self, report: Report, come: Any) -> None:
        """`come`: how many transactions have come, for the clients."""
        self._report, self._come = report, come
        self._committed: dict[int, tuple[int, int]] = {}  # transaction -> its rows and tasks
        self._open: dict[int, _Open] = {}
        self._done: set[int] = set()
        self._names: set[int] = set()  # hashes of what the listener calls those that have come

    def told(self, committed: array[int]) -> None:
        """Take in what a client has committed: number, rows and tasks of each transaction."""
        for number, rows, tasks in zip(committed[::3], committed[1::3], committed[2::3], strict=True):
            self._report.committed += 1
            self._committed[number] = rows, tasks
            self._close_if_whole(number)

    def came(self, message: dict[str, Any]) -> None:
        """Compare a message with what it says of itself."""
        headers = message["headers"]
        args = orjson.loads(b64decode(message["body"]))[0]
        number, step, truth = args[:3]
        context = None if truth is None else orjson.loads(truth)
        self._report.rows += 1
        if headers.get(CONTEXT_HEADER) != context:
            self._wrong(number, step, f"the header is {headers.get(CONTEXT_HEADER)}, not {context}")
        if number in self._done:
            self._wrong(number, step, "it comes once more, or is none of its transaction's")
            return
        transaction = self._open.get(number) or self._open.setdefault(number, _Open())
        if step <= transaction.step:
            self._wrong(number, step, f"it comes behind {transaction.step}")
        transaction.step = step
        if headers["task"] == "check.item":
            self._row_came(transaction, args, context)
        else:
            transaction.tasks += 1
        self._close_if_whole(number)

    def _row_came(self, transaction: _Open, args: list[Any], expected: Any) -> None:
        number, step, _, place, context, name, its_number, is_last = args
        transaction.rows += 1
        if context != expected:
            self._wrong(number, step, f"the context is {context}, not {expected}")
        if (transaction.name or name) != name:
            self._wrong(number, step, f"it is said to be of {name}, and others of {transaction.name}")
        transaction.name = name
        if its_number <= place:
            self._wrong(number, step, f"it is number {its_number}, and {place} rows are before it")
        if is_last:
            if transaction.last >= 0:
                self._wrong(number, step, f"it is the last one, and so was {transaction.last}")
            transaction.last = place

    def _close_if_whole(self, number: int) -> None:
        committed, transaction = self._committed.get(number), self._open.get(number)
        if committed is None or committed != (
            (transaction.rows, transaction.tasks) if transaction else (0, 0)
        ):
            return
        del self._committed[number]
        self._done.add(number)
        self._come.value += 1
        if transaction is None:
            return
        del self._open[number]
        if transaction.last != transaction.rows - 1:
            self._wrong(number, transaction.step, f"the last row is {transaction.last} of {transaction.rows}")
        if transaction.name:
            if hash(transaction.name) in self._names:
                self._wrong(number, transaction.step, f"{transaction.name} is another transaction's too")
            self._names.add(hash(transaction.name))

    @property
    def is_empty(self) -> bool:
        """Whether all that was committed has come."""
        return not self._committed

    def close(self) -> None:
        """What is open now was rolled back, or has not come whole."""
        for number in {*self._open, *self._committed}:
            came, committed = self._open.get(number), self._committed.get(number)
            self._wrong(number, -1, f"came {came}, committed were {committed} rows and tasks")

    def _wrong(self, number: int, step: int, what: str) -> None:
        self._report.wrong.append(f"{number}, {step}: {what}")


class Attribution:
    """One run on one database, into one broker."""

    def __init__(self, database: Any, broker_url: str, source: Source, *, seed: int) -> None:
        self._database, self._source, self._seed = database, source, seed
        self._client = redis.Redis.from_url(broker_url)
        self._is_binlog = source in {"mysql", "mariadb"}
        self._processes = multiprocessing.get_context("fork")
        self._come = self._processes.Value("q", 0, lock=False)
        self._is_over = threading.Event()
        self._started = threading.Event()
        self.report = Report()
        self._ledger = _Ledger(self.report, self._come)
        if self._is_binlog:
            database.execute(CREATE_MARKS)
        database.execute(_ITEMS)
        self._environment = {
            **os.environ, "DATABASE_URL": database.url, "CELERY_BROKER_URL": broker_url, "CACHE_URL": broker_url,
            "CDC_NAME": database.name, "CDC_ROUTES": "routes_of_check:setup", "CDC_MAX_QUEUE": "50000",
            "CDC_BATCH_SIZE": str(Random(seed).choice([97, 250, 1000])),  # they end anywhere
            **({} if self._is_binlog else {"CDC_PLUGIN": source}),
        }  # fmt: skip

    def run(self, transactions: int, *, kills: int, said: Callable[[str], None] = lambda _: None) -> Report:
        """Write, kill the listener as often, and compare all that comes. `said` is told how far it is."""
        with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
            (Path(text) / "routes_of_check.py").write_text(_ROUTES)
            self._environment["PYTHONPATH"] = f"{text}:{os.environ.get('PYTHONPATH', '')}"
            may_write = self._processes.Event()
            pipes = self._start_clients(transactions, may_write, stack)  # before there are threads
            attacker = threading.Thread(target=self._attack, args=(kills, transactions))
            attacker.start()
            stack.callback(attacker.join)
            stack.callback(self._is_over.set)
            wait_until(self._started.is_set, what="the listener", timeout=60)
            may_write.set()
            self._check(pipes, said)
        if not self.report.wrong:
            self._ledger.close()
        return self.report

    def _start_clients(self, transactions: int, may_write: Any, stack: ExitStack) -> list[Connection]:
        pipes = []
        for number in range(_CLIENTS):
            ours, theirs = self._processes.Pipe(duplex=False)
            random = Random(f"{self._seed}-{number}")
            client = _Client(number, random, theirs, self._come, is_binlog=self._is_binlog)
            share = transactions // _CLIENTS
            process = self._processes.Process(
                target=self._write, args=(client, share, may_write), daemon=True
            )
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            pipes.append(ours)
        return pipes

    def _write(self, client: _Client, transactions: int, may_write: Any) -> None:
        may_write.wait()
        _write(client, transactions, self._source, self._database.url, self._database.name)

    def _check(self, pipes: list[Connection], said: Callable[[str], None]) -> None:
        """Compare what comes, until all has come, nothing more comes for a while, or something is wrong."""
        told_at = heard_at = time.monotonic()
        while not self.report.wrong:
            self._listen(pipes)
            found: Any = self._client.rpop("cdc_bulk", 1000)
            for each in found or ():
                self._ledger.came(orjson.loads(each))
            now = time.monotonic()
            if found:
                heard_at = now
            elif not pipes and self._ledger.is_empty and not self._client.llen("cdc_bulk"):
                return
            elif now - heard_at > _PATIENCE:
                return  # the ledger says what has not come
            else:
                time.sleep(0.005)
            if now - told_at > _TELL_EVERY:
                told_at = now
                said(f"{self._come.value:,} transactions, {self.report.rows:,} rows and tasks have come")

    def _listen(self, pipes: list[Connection]) -> None:
        """Take in what clients have committed; drop those that have ended."""
        for pipe in list(pipes):
            while pipe.poll():
                try:
                    content = pipe.recv_bytes()
                except EOFError as error:
                    raise AssertionError("A client has failed: its error is above.") from error
                if not content:
                    pipes.remove(pipe)
                    break
                committed = array("q")
                committed.frombytes(content)
                self._ledger.told(committed)

    def _attack(self, kills: int, transactions: int) -> None:
        """Run the listener, and kill it at places that are spread over the run."""
        random = Random(self._seed)
        places = sorted(random.uniform(0, 0.8) * transactions for _ in range(kills))
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
                last = deque[str](maxlen=3)
                threading.Thread(
                    target=last.extend, args=[process.stderr or ()], daemon=True
                ).start()  # at once
                wait_until(self._reads, what="the listener to read", timeout=60)
                self._started.set()
                while not self._is_over.wait(random.uniform(0.05, 0.5)):
                    if process.poll() is not None:
                        self.report.wrong.append(f"The listener has ended by itself: {' '.join(last)}")
                        return
                    if self.report.kills < kills and self._come.value >= places[self.report.kills]:
                        self.report.kills += 1
                        break
                process.kill()

    def _reads(self) -> bool:
        if self._is_binlog:
            rows = self._database.fetch("SHOW PROCESSLIST")
            return any(str(row[4]).startswith("Binlog Dump") for row in rows)
        slots = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn IS NOT NULL"
        return bool(self._database.fetch(slots, self._database.name))


_PATIENCE: Final = 300.0  # seconds without a message
_TELL_EVERY: Final = 10.0  # seconds


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
    report = attribute(transactions, kills=kills, source=source, seed=chosen, said=typer.echo)
    for kind, times in Counter(report.wrong[:20]).items():
        typer.echo(f"{times} {kind}", err=True)
    raise typer.Exit(bool(report.wrong))


def attribute(
    transactions: int, *, kills: int, source: Source, seed: int, said: Callable[[str], None]
) -> Report:
    """Start the servers, write, kill, compare."""
    began = time.monotonic()
    with ExitStack() as stack:
        server, broker = _servers(source, stack)
        fresh: Any = fresh_mysql_database if source in {"mysql", "mariadb"} else fresh_database
        database = stack.enter_context(fresh(server))
        report = Attribution(database, broker, source, seed=seed).run(transactions, kills=kills, said=said)
    said(
        f"{report.committed:,} transactions, {report.rows:,} rows and tasks, {report.kills} kills, "
        f"{len(report.wrong)} wrong, in {time.monotonic() - began:,.0f} s"
    )
    return report


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
