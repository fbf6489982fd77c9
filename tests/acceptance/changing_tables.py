"""Tables that change in every way that docs/operating.md has a row for, while clients write and the listener dies.

    make chaos ARGS="--target tables --kills 200 --seed 7"

Every row that a client committed has to arrive once, or a gap that the listener told of has to name its table, and
positions around its commit. A gap may only name tables that were created again.

One limit of docs/operating.md is kept: a table that is new is not dropped, or renamed, before the listener has seen it.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Self

import psycopg2
import redis
from psycopg2 import errors

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.listener_process import ListenerProcess
from harness.waiting import Deadline, wait_until
from tests.acceptance.checker import read_message

__all__ = ["CHANGES", "ChangingTables", "Written", "told_in", "unexplained", "unfounded"]

_NAME: Final = "changing"
_ROW: Final = "id bigint PRIMARY KEY, mark bigint NOT NULL, note text, amount int DEFAULT 1"
_TABLES: Final = f"""
CREATE SCHEMA shop_a; CREATE SCHEMA shop_b;
CREATE TABLE orders ({_ROW});
CREATE TABLE called_one ({_ROW});
CREATE TABLE tenant_0 ({_ROW});
CREATE TABLE shop_a.items ({_ROW});
CREATE TABLE parts ({_ROW}) PARTITION BY RANGE (id);
CREATE TABLE parts_of_0 PARTITION OF parts DEFAULT;
"""
_LSN: Final = re.compile(r"\b([0-9A-F]+)/([0-9A-F]+)\b")

# What a client meets while somebody changes the table under it: it tries another one.
_PASSING: Final = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.CheckViolation,
    errors.FeatureNotSupported,  # "cached plan must not change result type"
    errors.InternalError_,  # "could not open relation with OID": it was dropped at this moment
)

Key = tuple[str, int]  # event; the row's mark, of a deleted row its id


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One change that a client committed."""

    key: Key
    table: str  # as the client called it
    since: int  # the log's end before the transaction
    until: int  # and behind its commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a line in the listener's log says is missing."""

    text: str
    since: int
    until: int

    def explains(self, written: Written) -> bool:
        return self.since <= written.until and written.since <= self.until and self.has(written.table)

    def has(self, table: str) -> bool:
        return re.search(rf"\b{re.escape(table)}\b", self.text) is not None


def told_in(text: str) -> Told:
    """Read a gap's positions: from the first to the last that it names, and without an end where it names one."""
    positions = [int(high, 16) << 32 | int(low, 16) for high, low in _LSN.findall(text)]
    if not positions:
        return Told(text=text, since=1, until=0)  # without positions it explains nothing
    until = max(positions) if len(positions) > 1 else 2**64
    return Told(text=text, since=min(positions), until=until)


def unfounded(told: list[Told], anew: Collection[str], known: Collection[str]) -> list[str]:
    """Return the gaps that name no table of `known`, or one that was not created again (`anew`)."""
    named = [(gap.text, {name for name in known if gap.has(name)}) for gap in told]
    return [f"a gap without a reason: {text}" for text, names in named if not names or names - set(anew)]


def unexplained(written: list[Written], arrived: Counter[Key], told: list[Told]) -> list[str]:
    """Return what is wrong: lost without a gap that names it, doubled, or never committed."""
    missing = [each for each in written if not arrived[each.key]]
    lost = [each for each in missing if not any(gap.explains(each) for gap in told)]
    known = {each.key for each in written}
    return [
        *(
            f"lost without a gap: {each.key} of {each.table}, {each.since:X} to {each.until:X}"
            for each in lost
        ),
        *(f"a gap was told: {gap.text}" for gap in told if any(gap.has(each.table) for each in lost)),
        *(f"{number} times: {key}" for key, number in arrived.items() if number > 1),
        *(f"never committed: {key}" for key in arrived if key not in known),
    ]


@dataclass
class _Client:
    """One application: short transactions of inserts, updates and deletes, in whatever tables it finds."""

    url: str
    dice: random.Random
    numbers: Iterator[int]
    names: Callable[[], list[str]]
    refused: list[str]
    written: list[Written] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)

    def run(self, ended: threading.Event) -> None:
        with closing(psycopg2.connect(self.url, options="-c lock_timeout=2000")) as connection:
            while not ended.wait(self.dice.uniform(0, 0.03)):
                try:
                    self.written += self._transaction(connection)
                except _PASSING:
                    connection.rollback()
                except errors.ObjectNotInPrerequisiteState as error:  # an UPDATE that the publication forbids
                    self.refused.append(str(error))
                    connection.rollback()

    def _transaction(self, connection: Any) -> list[Written]:
        table = self.dice.choice(self.names())
        with connection.cursor() as cursor:
            since = _end_of_log(cursor)
            done = [self._change(cursor, table) for _ in range(self.dice.randint(1, 4))]
            if self.dice.random() < 0.1:
                connection.rollback()
                return []
            connection.commit()
            until = _end_of_log(cursor)
            connection.commit()
        found = [Written(key=key, table=_qualified(table), since=since, until=until) for key in done]
        self.rows.setdefault(table, []).extend(mark for event, mark in done if event == "insert")
        return found

    def _change(self, cursor: Any, table: str) -> Key:
        number, old = next(self.numbers), self.rows.get(table, [])
        what = self.dice.choice(["insert", "insert", "update", "delete"]) if old else "insert"
        if what != "insert":
            row = self.dice.choice(old)
            if what == "update":
                cursor.execute(f"UPDATE {table} SET mark = %s WHERE id = %s", [number, row])
            else:
                cursor.execute(f"DELETE FROM {table} WHERE id = %s", [row])
                old.remove(row)
            if cursor.rowcount:
                return (what, number if what == "update" else row)
        cursor.execute(f"INSERT INTO {table} (id, mark, note) VALUES (%s, %s, 'note')", [number, number])
        return ("insert", number)


def _end_of_log(cursor: Any) -> int:
    cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
    return int(cursor.fetchone()[0])


def _qualified(table: str) -> str:
    return table if "." in table else f"public.{table}"


class ChangingTables:
    """A database, a broker, clients that write, and a listener that is killed and stopped."""

    def __init__(
        self, *, seed: int, database: type[PostgresServer] = PostgresServer, clients: int = 3
    ) -> None:
        self._seed = seed
        self._dice = random.Random(seed)
        self._database = database()
        self._broker = ValkeyServer()
        self._clients = clients
        self._names = ["orders", "called_one", "tenant_0", "shop_a.items", "parts"]
        self._numbers = count(1)
        self._known = set(map(_qualified, self._names))
        self._anew: set[str] = set()  # those that may have a gap
        self._kinds = _in_turn(self._dice, list(CHANGES))
        self._columns: dict[str, list[str]] = {}
        self._detached: str | None = None
        self._listener: ListenerProcess | None = None
        self._told: list[Told] = []
        self._refused: list[str] = []
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (self._database, self._broker):
                stack.enter_context(server)
            self._connection = stack.enter_context(closing(psycopg2.connect(self._database.url)))
            self._connection.autocommit = True
            self._execute(_TABLES)
            stack.callback(self._forget)
            self._start()
            self._attend(self._reads, what="read")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, steps: int, said: Callable[[str], None] = lambda _: None) -> list[str]:
        """Change tables `steps` times, and return what is wrong in the end."""
        said(f"CDC_TEST_SEED={self._seed}")
        with self._writing() as clients:
            for number in range(1, steps + 1):
                what = self._step()
                self.done[what] += 1
                said(f"{number}: {what}")
            time.sleep(1)
        self._catch_up()
        self._end()
        written = [each for client in clients for each in client.written]
        self.done["rows"] = len(written)
        return [
            *self._refused,
            *unexplained(written, self._arrived(), self._told),
            *unfounded(self._told, self._anew, self._known),
        ]

    @contextmanager
    def _writing(self) -> Iterator[list[_Client]]:
        ended = threading.Event()
        clients = [
            _Client(
                self._database.url,
                random.Random(self._dice.random()),
                self._numbers,
                lambda: list(self._names),
                self._refused,
            )
            for _ in range(self._clients)
        ]
        # Rows are one client's own: what becomes of each is certain then.
        threads = [threading.Thread(target=client.run, args=[ended]) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield clients
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _step(self) -> str:
        """Change a table, with the listener at work, or killed or stopped before and started behind it."""
        if self._dice.random() < 0.8:  # else it is met wherever it is: at its start, or stopped by a gap
            self._attend(self._reads, what="read")
        what = next(self._kinds)
        if what in _TAKES_A_NAME:
            self._attend(self._sees_all, what="see the new tables")
        when = self._dice.choice(["at work", "at work", "killed", "stopped"])
        if when == "killed":
            self._forget()
        elif when == "stopped":
            self._end()
        try:
            CHANGES[what](self)
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            what = "nothing: a table was locked"
        time.sleep(self._dice.uniform(0, 1.5))  # clients write to what there is now
        if self._listener is None:
            self._start()
        else:
            self._look()
        return f"{what}, listener {when}"

    # --- Ways in which tables change ----------------------------------------------------------------------

    def _plain(self) -> str:
        return self._dice.choice([name for name in self._names if name != "parts"])

    def add_column(self) -> None:
        table, column = self._dice.choice(self._names), f"c{next(self._numbers)}"
        self._execute(f"ALTER TABLE {table} ADD COLUMN {column} text DEFAULT 'new'")
        self._columns.setdefault(table, []).append(column)

    def drop_column(self) -> None:
        table = self._dice.choice(self._names)
        column = self._columns[table].pop() if self._columns.get(table) else "note"
        self._execute(
            f"ALTER TABLE {table} DROP COLUMN IF EXISTS {column} CASCADE; "
            f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS note text"
        )

    def rename_column(self) -> None:
        table = self._dice.choice(self._names)
        if columns := self._columns.get(table):
            column, name = columns.pop(), f"c{next(self._numbers)}"
            self._execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {name}")
            columns.append(name)

    def change_type(self) -> None:
        kind = self._dice.choice(["bigint", "numeric(20, 2)", "int"])
        self._execute(f"ALTER TABLE {self._dice.choice(self._names)} ALTER COLUMN amount TYPE {kind}")

    def change_identity(self) -> None:
        table, identity = self._plain(), self._dice.choice(["FULL", "DEFAULT"])
        self._execute(f"ALTER TABLE {table} REPLICA IDENTITY {identity}")

    def swap(self) -> None:
        table, number = self._plain(), next(self._numbers)
        schema, _, name = _qualified(table).partition(".")
        self._execute(
            f"CREATE SCHEMA attic_{number}; CREATE SCHEMA new_{number};"
            f"CREATE TABLE new_{number}.{name} (LIKE {table} INCLUDING ALL);"
            f"ALTER TABLE {table} SET SCHEMA attic_{number}; ALTER TABLE new_{number}.{name} SET SCHEMA {schema}"
        )
        self._made(table)

    def drop_and_create(self) -> None:
        table = self._plain()
        self._execute(f"DROP TABLE {table}; CREATE TABLE {table} ({_ROW})")
        self._made(table)
        self._columns.pop(table, None)

    def create(self) -> None:
        number = next(self._numbers)
        table = self._dice.choice([f"tenant_{number}", f"shop_{number}.items"])
        schema = f"CREATE SCHEMA shop_{number};" if "." in table else ""
        self._execute(f"{schema} CREATE TABLE {table} ({_ROW})")
        self._names.append(table)
        self._made(table)

    def rename(self) -> None:
        old, new = ("called_one", "called_two")
        if new in self._names:
            old, new = new, old
        self._execute(f"ALTER TABLE {old} RENAME TO {new}")
        self._called(old, new)

    def set_schema(self) -> None:
        old, new = ("shop_a.items", "shop_b.items")
        if new in self._names:
            old, new = new, old
        self._execute(f"ALTER TABLE {old} SET SCHEMA {new.partition('.')[0]}")
        self._called(old, new)

    def drop(self) -> None:
        others = [name for name in self._names if name.startswith("tenant_")]
        if len(others) > 1:
            table = self._dice.choice(others)
            self._names.remove(table)
            self._execute(f"DROP TABLE {table}")

    def attach(self) -> None:
        """Detach the partition that has the rows, and attach it again, or another one in its place."""
        number = next(self._numbers)
        self._execute(
            "ALTER TABLE parts DETACH PARTITION "
            + self._partition()
            + f"; CREATE TABLE parts_of_{number} (LIKE parts INCLUDING ALL);"
            f"ALTER TABLE parts ATTACH PARTITION parts_of_{number} DEFAULT"
        )

    def reattach(self) -> None:
        partition = self._partition()
        self._execute(f"ALTER TABLE parts DETACH PARTITION {partition}")
        time.sleep(self._dice.uniform(0, 0.3))
        self._execute(f"ALTER TABLE parts ATTACH PARTITION {partition} DEFAULT")

    def _partition(self) -> str:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'parts'::regclass"
            )
            return str(cursor.fetchone()[0])

    def _made(self, table: str) -> None:
        self._known.add(_qualified(table))
        self._anew.add(_qualified(table))

    def _called(self, old: str, new: str) -> None:
        self._known.add(_qualified(new))
        self._names[self._names.index(old)] = new
        self._columns[new] = self._columns.pop(old, [])

    # --- The listener, and the person who looks after it ---------------------------------------------------

    @property
    def _running(self) -> ListenerProcess:
        assert self._listener is not None
        return self._listener

    def _start(self, *arguments: str) -> None:
        environment = {
            "DATABASE_URL": self._database.url,
            "CELERY_BROKER_URL": self._broker.url,
            "CDC_NAME": _NAME,
            "CDC_ROUTES": "tests.acceptance.changing_routes:setup_router",
        }
        self._listener = ListenerProcess(environment, arguments=arguments)

    def _look(self) -> None:
        """Start the listener again where it ended by itself: with the gap accepted that it told of, if it did."""
        if self._running.running:
            return
        log, failed = self._running.log, self._running.events("failed")
        assert failed, f"it ended without logging why:\n{log[-3000:]}"
        self._forget()
        has_gap = "--accept-gap" in (failed[-1].get("hint") or "")
        assert has_gap, f"it ended with what no gap explains:\n{log[-3000:]}"
        self._start("--accept-gap")

    def _reads(self) -> bool:
        return bool(self._running.events("streaming"))

    def _sees_all(self) -> bool:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT schemaname || '.' || tablename FROM pg_publication_tables")
            return set(map(_qualified, self._names)) <= {name for (name,) in cursor.fetchall()}

    def _attend(self, condition: Callable[[], bool], *, what: str) -> None:
        def is_so() -> bool:
            self._look()
            return condition()

        wait_until(is_so, timeout=30, what=f"the listener to {what}")

    def _catch_up(self) -> None:
        with self._connection.cursor() as cursor:
            goal = _end_of_log(cursor)

            def has_passed() -> bool:
                cursor.execute(
                    "SELECT confirmed_flush_lsn - '0/0' >= %s FROM pg_replication_slots WHERE slot_name = %s",
                    [goal, _NAME],
                )
                row = cursor.fetchone()
                return row is not None and bool(row[0])

            self._attend(has_passed, what="come to the end of the log")

    def _end(self) -> None:
        """SIGTERM, once it has begun to read: it ends with 0, or told before why it ended."""
        deadline = Deadline(30)
        while self._running.running and not self._reads():
            deadline.check("the listener reads")
            time.sleep(0.05)
        if self._running.running:
            self._running.process.terminate()
        self._running.process.wait()
        self._forget()

    def _forget(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            if listener.running:
                listener.kill()
            self._told += _gaps_in(listener)
            listener.close()

    def _arrived(self) -> Counter[Key]:
        with redis.Redis.from_url(self._broker.url) as client:
            return Counter(_key(read_message(raw).arguments[0]) for raw in client.lrange("cdc_bulk", 0, -1))

    def _execute(self, statements: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '5s'; {statements}")


def _in_turn(dice: random.Random, kinds: list[str]) -> Iterator[str]:
    """Yield each once, then each once more, and so on, in an order that is never the same."""
    while True:
        yield from dice.sample(kinds, len(kinds))


def _key(change: Mapping[str, Any]) -> Key:
    event = change["event"]
    return event, change["before"]["id"] if event == "delete" else change["after"]["mark"]


def _gaps_in(listener: ListenerProcess) -> list[Told]:
    lines = [
        f"{line.get('table')} from {line.get('from')} to {line.get('to', '')}"
        for line in listener.events("gap")
    ]
    lines += [str(line.get("gap")) for line in listener.events("gap_accepted")]
    lines += [str(line.get("error")) for line in listener.events("failed")]
    return [told_in(line) for line in lines]


CHANGES: Final[dict[str, Callable[[ChangingTables], None]]] = {
    "a column added": ChangingTables.add_column,
    "a column dropped with CASCADE": ChangingTables.drop_column,
    "a column renamed": ChangingTables.rename_column,
    "a column's type changed": ChangingTables.change_type,
    "a replica identity changed": ChangingTables.change_identity,
    "a table swapped": ChangingTables.swap,
    "a table dropped and made again": ChangingTables.drop_and_create,
    "a table made under a glob": ChangingTables.create,
    "a table renamed": ChangingTables.rename,
    "a table moved to another schema": ChangingTables.set_schema,
    "a table dropped": ChangingTables.drop,
    "a partition replaced": ChangingTables.attach,
    "a partition detached and attached": ChangingTables.reattach,
}

# Of a new table that is dropped before the listener has seen it there is no trace; a renamed one is told as what it is
# called then (docs/operating.md, "A gap").
_TAKES_A_NAME: Final = frozenset(
    {
        "a table swapped",
        "a table dropped and made again",
        "a table renamed",
        "a table moved to another schema",
        "a table dropped",
    }
)
