"""The monitor on real servers: when it acknowledges, where it goes on, and what it lives through."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pytest

from cdc_tasks.changes import Change, EventType
from demo.servers import PostgresServer
from listener.monitor import Batch, Gap, SourceError, SourceLost
from listener.postgres.change import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

ROWS = "INSERT INTO items SELECT g, 'item' FROM generate_series(%s, %s) g"


@pytest.fixture
def items(database: Database) -> Database:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    database.execute("CREATE TABLE other (id bigint)")
    return database


def make_monitor(database: Database, *, url: str | None = None, **options: Any) -> PostgresWALMonitor:
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    return PostgresWALMonitor(
        url or database.url, slot=database.name, publication="cdc", routes=router.routes, **options
    )


@contextmanager
def opened(database: Database, *, resumes: bool = False, **options: Any) -> Iterator[PostgresWALMonitor]:
    monitor = make_monitor(database, **options)
    monitor.open(resumes=resumes)
    try:
        yield monitor
    finally:
        monitor.close()


def ids(changes: list[Change]) -> list[int]:
    return [change.row["id"] for change in changes]


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    """Return batches until they have so many changes."""
    taken: list[Batch] = []
    deadline = time.monotonic() + 20
    while sum(len(batch.changes) for batch in taken) < count:
        assert time.monotonic() < deadline, f"only {taken} came"
        taken.append(next(batches))
    return [batch for batch in taken if batch.changes]


def changes_of(batches: list[Batch]) -> list[Change]:
    return [change for batch in batches for change in batch.changes]


def confirmed(database: Database) -> int:
    ((lsn,),) = database.fetch(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", database.name
    )
    return parse_lsn(lsn)


def acknowledge_all(database: Database, monitor: PostgresWALMonitor, batches: Iterator[Batch]) -> None:
    goal = current(database)

    def acknowledged() -> bool:
        batch = next(batches)
        assert not batch.changes
        monitor.acknowledge(batch.position)
        return confirmed(database) >= goal

    wait_until(acknowledged, what="the slot to move on")


def active(database: Database) -> bool:
    rows = database.fetch("SELECT active FROM pg_replication_slots WHERE slot_name = %s", database.name)
    return bool(rows[0][0])


def current(database: Database) -> int:
    return parse_lsn(database.fetch("SELECT pg_current_wal_lsn()")[0][0])


def test_a_restart_goes_on_in_the_middle_of_a_transaction(items: Database) -> None:
    with opened(items, batch_size=10) as monitor:
        items.execute(ROWS, 1, 95)
        first = take(monitor.batches(after=None), 40)
        assert [len(batch.changes) for batch in first] == [10] * 4
    with opened(items, resumes=True, batch_size=10) as monitor:
        rest = changes_of(take(monitor.batches(after=first[-1].position), 55))
        assert ids(rest) == list(range(41, 96))


def test_a_replayed_change_has_the_id_and_the_position_that_it_had(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 5)
        first = changes_of(take(monitor.batches(after=None), 5))
    with opened(items, resumes=True) as monitor:
        again = changes_of(take(monitor.batches(after=None), 5))
    assert [(each.id, each.position) for each in first] == [(each.id, each.position) for each in again]
    assert len({each.id for each in first}) == 5


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        batches = monitor.batches(after=None)
        take(batches, 1)
        acknowledge_all(items, monitor, batches)
        items.execute(ROWS, 2, 2)
        take(batches, 1)
    with opened(items, resumes=True) as monitor:
        assert ids(changes_of(take(monitor.batches(after=None), 1))) == [2]


def test_a_database_whose_watched_tables_are_idle_lets_its_log_go(items: Database) -> None:
    with opened(items) as monitor:
        batches = monitor.batches(after=None)
        for number in range(5):
            items.execute("INSERT INTO other VALUES (%s)", number)
        acknowledge_all(items, monitor, batches)


def test_nothing_is_acknowledged_that_was_not_said_to_be_published(items: Database) -> None:
    with opened(items) as monitor:
        before = confirmed(items)
        items.execute(ROWS, 1, 3)
        batches = monitor.batches(after=None)
        take(batches, 3)
        for _ in range(8):  # two seconds of ticks, with keepalives that the server wants answered
            items.execute("SELECT pg_switch_wal()")
            next(batches)
        assert confirmed(items) == before


def test_a_transaction_that_began_before_the_last_acknowledgement_ends_the_batch_before_it(
    items: Database,
) -> None:
    with opened(items) as monitor, items.connect() as old, items.connect() as older:
        for connection, number in ((old, 100), (older, 200)):
            connection.cursor().execute(ROWS, (number, number))
        items.execute(ROWS, 1, 1)
        batches = monitor.batches(after=None)
        (first,) = take(batches, 1)
        assert ids(list(first.changes)) == [1]
        acknowledge_all(items, monitor, batches)  # beyond the first row of the two open transactions
        old.commit()
        older.commit()
        wait_until(lambda: items.fetch("SELECT count(*) FROM items")[0][0] == 3, what="the rows")
        rest = take(batches, 2)
        assert [(ids(list(batch.changes)), batch.settle) for batch in rest] == [([100], True), ([200], False)]


def test_before_a_transaction_that_began_before_the_last_acknowledgement_all_is_settled(
    items: Database,
) -> None:
    """The server could be told otherwise that what is on its way to the broker may be forgotten."""
    with opened(items) as monitor, items.connect() as old:
        old.cursor().execute(ROWS, (100, 102))
        items.execute(ROWS, 1, 1)
        batches = monitor.batches(after=None)
        take(batches, 1)
        acknowledge_all(items, monitor, batches)
        items.execute(ROWS, 2, 2)
        (second,) = take(batches, 1)
        assert not second.settle
        old.commit()
        wait_until(lambda: items.fetch("SELECT count(*) FROM items")[0][0] == 5, what="the rows")
        before, batch = next(batches), next(batches)
        assert (before.changes, before.settle) == ((), True)
        assert ids(list(batch.changes)) == [100, 101, 102]


def test_in_a_transaction_that_began_before_an_acknowledgement_each_piece_is_settled(items: Database) -> None:
    with opened(items, batch_size=2) as monitor, items.connect() as old:
        batches = monitor.batches(after=None)
        next(batches)
        old.cursor().execute(ROWS, (100, 105))
        items.execute(ROWS, 1, 1)
        (first,) = take(batches, 1)
        old.commit()
        wait_until(lambda: items.fetch("SELECT count(*) FROM items")[0][0] == 7, what="the rows")
        (piece,) = take(batches, 2)
        assert (ids(list(piece.changes)), piece.settle) == ([100, 101], False)
        monitor.acknowledge(first.position)  # beyond the first row of the transaction that is being read
        rest = [next(batches) for _ in range(4)]
        assert [ids(list(batch.changes)) for batch in rest] == [[], [102, 103], [], [104, 105]]
        assert [batch.settle for batch in rest if not batch.changes] == [True, True]


def test_the_connection_lives_on_while_the_reader_is_busy_elsewhere(items: Database) -> None:
    impatient = f"{items.url}?options={quote('-c wal_sender_timeout=1500')}"
    with opened(items, url=impatient) as monitor:
        batches = monitor.batches(after=None)
        next(batches)
        ((pid,),) = items.fetch(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", items.name
        )
        busy_until = time.monotonic() + 5
        while time.monotonic() < busy_until:  # a slow predicate, or a broker that is away
            pass
        items.execute(ROWS, 1, 1)
        assert ids(changes_of(take(batches, 1))) == [1]
        ((same,),) = items.fetch(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", items.name
        )
        assert same == pid


def test_a_second_listener_waits_and_takes_over_when_the_first_dies(items: Database) -> None:
    second = make_monitor(items)
    taken_over = threading.Event()

    def stand_by() -> None:
        second.open(resumes=True)
        taken_over.set()

    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        (batch,) = take(monitor.batches(after=None), 1)
        thread = threading.Thread(target=stand_by)
        thread.start()
        assert not taken_over.wait(1.5)
    assert taken_over.wait(10)
    thread.join()
    items.execute(ROWS, 2, 2)
    assert ids(changes_of(take(second.batches(after=batch.position), 1))) == [2]
    second.close()


def test_a_standby_can_be_stopped(items: Database) -> None:
    second = make_monitor(items)
    thread = threading.Thread(target=second.open, kwargs={"resumes": True})
    with opened(items):
        thread.start()
        second.stop()
        thread.join(5)
        assert not thread.is_alive()


@contextmanager
def own_server() -> Iterator[tuple[PostgresServer, PostgresWALMonitor]]:
    """Start a server that may be restarted, with a monitor on it that the server does not wait long for."""
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    with PostgresServer() as server:
        execute(server, "CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        url = f"{server.url}?options={quote('-c wal_sender_timeout=1500')}"
        monitor = PostgresWALMonitor(url, slot="cdc", publication="cdc", routes=router.routes)
        monitor.open(resumes=False)
        yield server, monitor
        monitor.close()


def execute(server: PostgresServer, statement: str, *arguments: Any) -> None:
    with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, arguments or None)


def test_a_restarted_server_is_source_lost_and_the_next_open_goes_on() -> None:
    with own_server() as (server, monitor):
        execute(server, ROWS, 1, 2)
        batches = monitor.batches(after=None)
        taken = take(batches, 2)
        monitor.acknowledge(taken[-1].position)
        lost = []

        def pump() -> None:
            try:
                for batch in batches:
                    monitor.acknowledge(batch.position)
            except SourceLost as error:
                lost.append(error)

        reader = threading.Thread(target=pump)
        reader.start()
        server.restart()
        reader.join(10)
        assert lost
        monitor.open(resumes=True)
        execute(server, ROWS, 3, 3)
        assert ids(changes_of(take(monitor.batches(after=taken[-1].position), 1))) == [3]


def test_a_server_that_shuts_down_does_not_wait_for_a_reader_that_is_busy_elsewhere() -> None:
    with own_server() as (server, monitor):
        execute(server, ROWS, 1, 2)
        batches = monitor.batches(after=None)
        take(batches, 2)  # nothing is acknowledged: the broker is away
        server.stop()
        assert "database system is shut down" in server.log, "it had to be killed"
        with pytest.raises(SourceLost):
            take(batches, 1)


def test_a_slot_that_is_gone_is_a_gap_that_can_be_accepted(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        (batch,) = take(monitor.batches(after=None), 1)
    wait_until(lambda: not active(items), what="the server to notice that the reader is gone")
    items.execute("SELECT pg_drop_replication_slot(%s)", items.name)
    with pytest.raises(Gap, match="gone") as caught:
        make_monitor(items).open(resumes=True)
    assert "--accept-gap" in str(caught.value)
    assert items.fetch("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", items.name) == []
    with opened(items, resumes=True, accept_gap=True) as monitor:
        items.execute(ROWS, 2, 2)
        assert ids(changes_of(take(monitor.batches(after=batch.position), 1))) == [2]


def test_a_checkpoint_beyond_the_end_of_the_log_is_refused(items: Database) -> None:
    with opened(items) as monitor, pytest.raises(SourceError, match="lies beyond the end"):
        next(monitor.batches(after="FFFF/0:0"))


def test_a_large_transaction_comes_in_pieces_of_wide_rows_too(items: Database) -> None:
    with opened(items) as monitor:
        items.execute("INSERT INTO items SELECT g, repeat('x', 100000) FROM generate_series(1, 50) g")
        batches = take(monitor.batches(after=None), 50)
        assert max(len(batch.changes) for batch in batches) <= 11
        assert ids(changes_of(batches)) == list(range(1, 51))
