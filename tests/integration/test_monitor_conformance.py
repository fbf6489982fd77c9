"""What every source promises (`listener.core.source.Monitor`), tested on each database."""

from __future__ import annotations

import json
import random
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cdc_tasks.changes import RowChange, position_key
from harness.waiting import Deadline, at_most, wait_until
from listener.core.backfill import ChunkRequest
from listener.core.source import Saved, SourceLostError
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter, EventType
from tests.support.listening import SAVED
from tests.support.mysql.source import MySQLDatabase
from tests.support.publishing import in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc_tasks.changes import Change
    from listener.core.backfill import Chunk
    from listener.core.source import Batch, Monitor

_TABLE = "CREATE TABLE t (id integer PRIMARY KEY, name varchar(50), amount {decimal})"


@dataclass
class Source:
    """One database, and monitors that watch its table `t`."""

    database: Any
    schema: str
    make: Callable[[BinlogRouter], Monitor]
    stack: ExitStack

    def monitor(self) -> Monitor:
        router = BinlogRouter()
        router.register(self.schema, "t", EventType.ALL, "a.task")
        monitor = self.make(router)
        self.stack.callback(monitor.close)
        return monitor

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.database.execute(statement)

    def rows(self) -> list[tuple[int, Any]]:
        """Return id and amount of the table's rows."""
        found: list[tuple[int, Any]] = self.database.fetch("SELECT id, amount FROM t")
        return found

    def cut(self) -> None:
        """End the connections over which monitors read."""
        if isinstance(self.database, MySQLDatabase):
            for row in self.database.fetch("SHOW PROCESSLIST"):
                if str(row[4]).startswith("Binlog Dump"):
                    self.database.execute(f"KILL {row[0]}")
        else:
            query = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s"
            self.database.fetch(query, self.database.name)


@pytest.fixture(params=["database", "debian_database", "mariadb_database", "mysql_database"])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    database = request.getfixturevalue(request.param)
    postgres = not isinstance(database, MySQLDatabase)

    def make(router: BinlogRouter) -> Monitor:
        if postgres:
            return PostgresWALMonitor(
                database.url,
                slot=database.name,
                publication="cdc_tasks",
                routes=router.routes,
                batch_size=100,
            )
        return BinlogMonitor(database.url, name=database.name, routes=router.routes, batch_size=100)

    with ExitStack() as stack:
        found = Source(database, "public" if postgres else database.name, make, stack)
        found.execute(_TABLE.format(decimal="numeric(10,2)" if postgres else "decimal(10,2)"))
        if postgres:
            found.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        yield found


def _read(monitor: Monitor, after: str | None, count: int) -> tuple[list[Change], str]:
    """Return `count` changes, and the position after them."""
    found: list[Change] = []
    deadline = Deadline(30)
    for batch in monitor.batches(after):
        found.extend(batch.changes)
        monitor.acknowledge(batch.position)
        if len(found) >= count:
            assert len(found) == count
            return found, batch.position
        deadline.check(f"{len(found)} of {count} changes")
    raise AssertionError("the batches ended")


def _start(monitor: Monitor, *, saved: Saved | None = None) -> str:
    """Open it and return its first position."""
    monitor.open(saved=saved)
    return next(iter(monitor.batches(None))).position


def test_changes_are_the_same_on_every_source(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    next(batches)
    source.execute(
        "INSERT INTO t VALUES (1, 'Ada', 12.5), (2, NULL, NULL)",
        "UPDATE t SET name = 'Bob' WHERE id = 2",
        "DELETE FROM t WHERE id = 1",
        "TRUNCATE TABLE t",
    )
    found: list[Change] = []
    for batch in batches:
        found.extend(batch.changes)
        if len(found) >= 5:
            break
    first, second = {"id": 1, "name": "Ada", "amount": "12.50"}, {"id": 2, "name": None, "amount": None}
    assert [(each.event.value, each.before, each.after) for each in found] == [
        ("insert", None, first),
        ("insert", None, second),
        ("update", second, {**second, "name": "Bob"}),
        ("delete", first, None),
        ("truncate", None, None),
    ]
    assert {(each.schema, each.table) for each in found} == {(source.schema, "t")}
    for each in found:
        message = RowChange.from_message(json.loads(each.to_json()))
        assert (message.id, message.position, message.row) == (each.id, each.position, dict(each.row))
        assert message.committed_at == each.committed_at
        assert abs((datetime.now(UTC) - each.committed_at).total_seconds()) < 900
        assert each.stamp == (each.id.encode(), each.position.encode())
        assert each.kind == (each.schema, each.table, each.event.value)
    assert [each.changed("name") for each in found] == [True, True, True, True, True]
    assert [each.changed("amount") for each in found] == [True, True, False, True, True]


def test_positions_ascend_and_ids_differ(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    next(batches)
    source.execute(*(f"INSERT INTO t (id) VALUES ({n}), ({n + 1})" for n in range(0, 40, 2)))
    found: list[Change] = []
    for batch in batches:
        found.extend(batch.changes)
        if len(found) >= 40:
            break
    keys = [position_key(each.position) for each in found]
    assert keys == sorted(keys)
    assert len({each.id for each in found}) == 40


def test_a_replay_gives_the_same_ids_and_a_restart_goes_on_behind_what_was_published(source: Source) -> None:
    monitor = source.monitor()
    start = _start(monitor)
    monitor.close()
    source.execute("INSERT INTO t (id) VALUES (1)", "INSERT INTO t (id) VALUES (2), (3), (4)")
    seen: list[list[tuple[str, str, int]]] = []
    for _ in range(2):
        monitor = source.monitor()
        monitor.open(saved=SAVED)
        found, end = [], start
        for batch in monitor.batches(start):
            found += [(each.id, each.position, each.row["id"]) for each in batch.changes]
            end = batch.position
            if len(found) == 4:
                break
        seen.append(found)
        monitor.close()
    assert seen[0] == seen[1]
    source.execute("INSERT INTO t (id) VALUES (5)")
    monitor = source.monitor()
    monitor.open(saved=SAVED)
    found, _ = _read(monitor, end, 1)
    assert [each.row["id"] for each in found] == [5]


def test_a_large_transaction_comes_in_pieces_and_goes_on_in_the_middle(source: Source) -> None:
    monitor = source.monitor()
    start = _start(monitor)
    monitor.close()
    rows = ", ".join(f"({number})" for number in range(5000))
    source.execute(f"INSERT INTO t (id) VALUES {rows}")
    monitor = source.monitor()
    monitor.open(saved=SAVED)
    first: list[int] = []
    for batch in monitor.batches(start):
        assert len(batch.changes) < 2500
        first += [each.row["id"] for each in batch.changes]
        if len(first) > 1000:
            break
    monitor.close()
    monitor = source.monitor()
    monitor.open(saved=SAVED)
    found, _ = _read(monitor, batch.position, 5000 - len(first))
    assert first + [each.row["id"] for each in found] == list(range(5000))


def test_the_first_batch_is_where_reading_begins(source: Source) -> None:
    source.execute("INSERT INTO t (id) VALUES (1)")
    monitor = source.monitor()
    monitor.open(saved=None)
    first = next(iter(monitor.batches(None)))
    assert (list(first.changes), first.pipelined) == ([], False)
    monitor.close()
    source.execute("INSERT INTO t (id) VALUES (2)")
    monitor.open(saved=Saved(first.position))
    found, _ = _read(monitor, first.position, 1)
    assert found[0].row["id"] == 2


def test_batches_without_changes_come_while_nothing_happens(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    for _, batch in zip(range(12), monitor.batches(None), strict=False):
        assert (list(batch.changes), batch.pipelined) == ([], False)
        monitor.acknowledge(batch.position)


def test_a_batch_that_is_not_pipelined_follows_the_last_change(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    next(batches)
    source.execute("INSERT INTO t (id) VALUES (1)", "INSERT INTO t (id) VALUES (2)")
    ids: list[int] = []
    while len(ids) < 2:
        batch = next(batches)
        ids += [each.row["id"] for each in batch.changes]
    batch = next(batches)
    assert (ids, list(batch.changes), batch.pipelined) == ([1, 2], [], False)


def test_the_position_moves_on_over_log_that_concerns_nobody(source: Source) -> None:
    source.execute("CREATE TABLE other (id integer PRIMARY KEY)")
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    first = position = next(batches).position
    deadline = Deadline(30)
    for number in range(1, 1_000_000):
        source.execute(f"INSERT INTO other VALUES ({number})")
        batch = next(batches)
        assert not batch.changes
        position = batch.position
        monitor.acknowledge(position)
        if position != first:
            break
        deadline.check("a position after the first")
    monitor.close()
    source.execute("INSERT INTO t (id) VALUES (1)")
    monitor.open(saved=Saved(position))
    found, _ = _read(monitor, position, 1)
    assert found[0].row["id"] == 1


def test_nothing_is_dropped_beyond_what_was_acknowledged(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    next(batches)
    positions = []
    for number in (1, 2, 3):
        source.execute(f"INSERT INTO t (id) VALUES ({number})")
        positions.append(next(batch for batch in batches if batch.changes).position)
    monitor.acknowledge(positions[0])
    monitor.close()
    monitor.open(saved=Saved(positions[0]))
    found, _ = _read(monitor, positions[0], 2)
    assert [each.row["id"] for each in found] == [2, 3]


def test_a_lost_connection_is_an_error_after_which_it_can_be_opened_again(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = monitor.batches(None)
    position = next(batches).position
    source.cut()

    def read_on() -> None:
        for batch in batches:
            assert not batch.changes

    with pytest.raises(SourceLostError):
        read_on()
    monitor.close()
    source.execute("INSERT INTO t (id) VALUES (1)")

    def opens() -> bool:  # the server may still have the old connection
        try:
            monitor.open(saved=Saved(position))
        except SourceLostError:
            return False
        return True

    wait_until(opens, what="it to open again")
    found, _ = _read(monitor, position, 1)
    assert found[0].row["id"] == 1


def test_every_monitor_of_a_database_has_the_same_source(source: Source) -> None:
    names = []
    for _ in range(2):
        monitor = source.monitor()
        monitor.open(saved=None)
        names.append(monitor.source)
        monitor.close()
    assert names[0]
    assert names[0] == names[1]


def test_stop_ends_the_batches_and_a_standby(source: Source) -> None:
    monitor, standby = source.monitor(), source.monitor()
    monitor.open(saved=None)
    ended = threading.Event()

    def read() -> None:
        for _ in monitor.batches(None):
            pass
        ended.set()

    threading.Thread(target=read).start()
    with capture_logs() as logs, in_background(lambda: standby.open(saved=None)) as opening:
        wait_until(lambda: any(line["event"] == "standby" for line in logs), what="the standby to wait")
        assert not opening.done()
        standby.stop()
        opening.result(at_most(60))
    monitor.stop()
    assert ended.wait(at_most(60))


def test_a_standby_takes_over(source: Source) -> None:
    monitor, standby = source.monitor(), source.monitor()
    position, asked = _start(monitor), list[Saved]()

    def read_again() -> Saved:
        asked.append(Saved(position))
        return asked[-1]

    with (
        capture_logs() as logs,
        in_background(lambda: standby.open(saved=SAVED, again=read_again)) as opening,
    ):
        wait_until(lambda: any(line["event"] == "standby" for line in logs), what="the standby to wait")
        assert not opening.done()
        monitor.close()
        opening.result(at_most(60))
    source.execute("INSERT INTO t (id) VALUES (1)")
    found, _ = _read(standby, position, 1)
    assert found[0].row["id"] == 1
    assert asked or isinstance(source.database, MySQLDatabase)  # a binlog needs no more than `after`


def test_closing_twice_and_before_open_is_fine(source: Source) -> None:
    monitor = source.monitor()
    monitor.close()
    monitor.open(saved=None)
    with closing(monitor):
        monitor.close()


# --- Backfills ------------------------------------------------------------------------------------------


def _chunk(
    source: Source, batches: Iterator[Batch], monitor: Monitor, sent: list[Change], **more: Any
) -> Chunk:
    """Ask for a chunk of the table; return it once it has its place, with what came before in `sent`."""
    options: dict[str, Any] = {"backfill": "a1", "schema": source.schema, "table": "t", "limit": 100} | more
    monitor.read_chunk(ChunkRequest(**options))
    deadline = Deadline(60)
    for batch in batches:
        monitor.acknowledge(batch.position)
        sent.extend(batch.changes)
        if batch.chunk is not None:
            sent.extend(batch.chunk.rows)
            return batch.chunk
        deadline.check("the chunk")
    raise AssertionError("the batches ended")


def test_a_read_is_the_row_as_its_insert_was_and_comes_though_nothing_happens(source: Source) -> None:
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = iter(monitor.batches(None))
    next(batches)
    source.execute("INSERT INTO t VALUES (1, 'Ada \"é\"', 12.5), (2, NULL, NULL)")
    inserts: list[Change] = []
    while len(inserts) < 2:
        inserts += next(batches).changes
    chunk = _chunk(source, batches, monitor, [])
    assert (chunk.error, chunk.found, chunk.is_end, chunk.last) == (None, 2, True, ("2",))
    for read, insert in zip(chunk.rows, inserts, strict=True):
        message = RowChange.from_message(json.loads(read.to_json()))
        assert (message.event, message.before, message.unavailable) == (EventType.READ, None, ())
        assert message.after == read.after == insert.after
        assert position_key(read.position) > position_key(inserts[-1].position)
        assert abs((datetime.now(UTC) - read.committed_at).total_seconds()) < 900
        assert read.kind == (source.schema, "t", "read")
    again = _chunk(source, batches, monitor, [])
    assert [each.id for each in again.rows] == [each.id for each in chunk.rows]
    other = _chunk(source, batches, monitor, [], backfill="b2", after=("1",), where="amount IS NULL")
    assert [each.row["id"] for each in other.rows] == [2]
    assert {each.id for each in other.rows}.isdisjoint(each.id for each in chunk.rows)
    source.execute("INSERT INTO t VALUES (3, 'later', 1)")
    later: list[Change] = []
    while not later:
        later += next(batches).changes
    assert position_key(later[0].position) > position_key(other.rows[0].position)


def test_reads_and_changes_together_give_the_table_and_nothing_goes_back(source: Source) -> None:
    rows, versions, chance = 200, count(1), random.Random(3)
    values = ", ".join(f"({number}, 'v', {next(versions)})" for number in range(rows))
    source.execute(f"INSERT INTO t VALUES {values}")
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = iter(monitor.batches(None))
    next(batches)
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.002):
            number, statement = chance.randrange(rows), chance.choice(_WRITES)
            source.execute(statement.format(id=number, version=next(versions)))

    sent: list[Change] = []
    last, is_end, torn = None, False, 0
    with in_background(write) as writing:
        while not is_end:
            chunk = _chunk(source, batches, monitor, sent, limit=11, after=last)
            assert chunk.error is None
            torn += chunk.is_torn
            if not chunk.is_torn:
                last, is_end = chunk.last, chunk.is_end
        stop.set()
        writing.result(at_most(60))
    source.execute("INSERT INTO t VALUES (1000000, 'last', 0)")
    while not (sent and sent[-1].row.get("id") == 1000000):
        sent.extend(next(batches).changes)
    state: dict[int, float] = {}
    newest: dict[int, float] = {}
    for each in sent:
        number = each.row["id"]
        if each.after is None:
            state.pop(number, None)
            continue
        state[number] = float(each.after["amount"])
        assert state[number] >= newest.get(number, 0), each.to_json()
        newest[number] = state[number]
    assert state == {number: float(version) for number, version in source.rows()}
    reads = [each.row["id"] for each in sent if each.event is EventType.READ]
    assert len(reads) == len(set(reads)) > rows / 2
    assert torn == 0


_WRITES = (
    "UPDATE t SET amount = {version} WHERE id = {id}",
    "UPDATE t SET amount = {version} WHERE id BETWEEN {id} AND {id} + 5",
    "DELETE FROM t WHERE id = {id}",
    "INSERT INTO t SELECT {id}, 'x', {version} FROM (SELECT 1) o WHERE NOT EXISTS (SELECT 1 FROM t WHERE id = {id})",
)


def test_wide_rows_come_in_smaller_chunks_and_what_cannot_be_read_is_an_error(source: Source) -> None:
    values = ", ".join(f"({number}, '{'x' * 40}', 1)" for number in range(20))
    source.execute(f"INSERT INTO t VALUES {values}", "CREATE TABLE keyless (v integer)")
    monitor = source.monitor()
    monitor.open(saved=None)
    batches = iter(monitor.batches(None))
    next(batches)
    found: list[Change] = []
    last, is_end = None, False
    while not is_end:
        chunk = _chunk(source, batches, monitor, found, after=last, max_bytes=180)
        assert 0 <= len(chunk.rows) <= 6
        last, is_end = chunk.last, chunk.is_end
    assert [each.row["id"] for each in found] == list(range(20))
    for options, code in (
        ({"table": "no_such"}, "backfill_no_table"),
        ({"table": "keyless"}, "backfill_no_key"),
        ({"where": "no_column > 1"}, None),
        ({"where": "1 = 1; DROP TABLE t"}, "backfill_where"),
    ):
        error = _chunk(source, batches, monitor, [], **options).error
        assert error is not None
        assert code is None or error.code == code
    assert len(_chunk(source, batches, monitor, []).rows) == 20
