"""The monitor on real servers: where it goes on, and what it lives through."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pytest

from cdc_tasks.changes import EventType
from harness.embedded_servers import PostgresServer
from harness.waiting import at_most, wait_until
from listener.core.source import GapError, SourceLostError
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter
from tests.support.listening import SAVED
from tests.support.postgres.items import ROWS, active, changes_of, ids, make_monitor, opened, take, with_items

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database


@pytest.fixture
def items(database: Database) -> Database:
    return with_items(database)


def test_a_restart_goes_on_in_the_middle_of_a_transaction(items: Database) -> None:
    with opened(items, batch_size=10) as monitor:
        items.execute(ROWS, 1, 95)
        first = take(monitor.batches(after=None), 40)
        assert all(len(batch.changes) <= 10 for batch in first)
    seen = len(changes_of(first))
    assert 40 <= seen < 50
    with opened(items, saved=SAVED, batch_size=10) as monitor:
        rest = changes_of(take(monitor.batches(after=first[-1].position), 95 - seen))
        assert ids(rest) == list(range(seen + 1, 96))


def test_a_replayed_change_has_the_id_and_the_position_that_it_had(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 5)
        first = changes_of(take(monitor.batches(after=None), 5))
    with opened(items, saved=SAVED) as monitor:
        again = changes_of(take(monitor.batches(after=None), 5))
    assert [(each.id, each.position) for each in first] == [(each.id, each.position) for each in again]
    assert len({each.id for each in first}) == 5


def test_the_connection_lives_on_while_the_reader_is_busy_elsewhere(items: Database) -> None:
    impatient = f"{items.url}?options={quote('-c wal_sender_timeout=3000')}"
    with opened(items, url=impatient) as monitor:
        batches = monitor.batches(after=None)
        next(batches)
        ((pid,),) = items.fetch(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", items.name
        )
        busy_until = time.monotonic() + 4.5
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
        second.open(saved=SAVED)
        taken_over.set()

    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        (batch,) = take(monitor.batches(after=None), 1)
        thread = threading.Thread(target=stand_by)
        thread.start()
        assert not taken_over.wait(1.5)
    assert taken_over.wait(at_most(10))
    thread.join()
    items.execute(ROWS, 2, 2)
    assert ids(changes_of(take(second.batches(after=batch.position), 1))) == [2]
    second.close()


def test_a_standby_can_be_stopped(items: Database) -> None:
    second = make_monitor(items)
    thread = threading.Thread(target=second.open, kwargs={"saved": SAVED})
    with opened(items):
        thread.start()
        second.stop()
        thread.join(at_most(5))
        assert not thread.is_alive()


@contextmanager
def own_server() -> Iterator[tuple[PostgresServer, PostgresWALMonitor]]:
    """Start a server that may be restarted, with a monitor on it that the server does not wait long for."""
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    with PostgresServer() as server:
        execute(server, "CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        url = f"{server.url}?options={quote('-c wal_sender_timeout=3000')}"
        monitor = PostgresWALMonitor(url, slot="cdc", publication="cdc", routes=router.routes)
        monitor.open(saved=None)
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
            except SourceLostError as error:
                lost.append(error)

        reader = threading.Thread(target=pump)
        reader.start()
        server.restart()
        reader.join(at_most(10))
        assert lost
        monitor.open(saved=SAVED)
        execute(server, ROWS, 3, 3)
        assert ids(changes_of(take(monitor.batches(after=taken[-1].position), 1))) == [3]


def test_a_server_that_shuts_down_does_not_wait_for_a_reader_that_is_busy_elsewhere() -> None:
    with own_server() as (server, monitor):
        execute(server, ROWS, 1, 2)
        batches = monitor.batches(after=None)
        take(batches, 2)  # nothing is acknowledged: the broker is away
        server.stop()
        assert "database system is shut down" in server.log, "it had to be killed"
        with pytest.raises(SourceLostError):
            take(batches, 1)


def test_a_slot_that_is_gone_is_a_gap_that_can_be_accepted(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        (batch,) = take(monitor.batches(after=None), 1)
    wait_until(lambda: not active(items), what="the server to notice that the reader is gone")
    items.execute("SELECT pg_drop_replication_slot(%s)", items.name)
    with pytest.raises(GapError, match="no longer exists") as caught:
        make_monitor(items).open(saved=SAVED)
    assert "--accept-gap" in str(caught.value)
    assert items.fetch("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", items.name) == []
    with opened(items, saved=SAVED, accept_gap=True) as monitor:
        items.execute(ROWS, 2, 2)
        assert ids(changes_of(take(monitor.batches(after=batch.position), 1))) == [2]


def test_a_checkpoint_beyond_the_end_of_the_log_is_refused(items: Database) -> None:
    with opened(items) as monitor, pytest.raises(GapError, match="is after the end"):
        next(monitor.batches(after="FFFF/0:0"))


def test_a_large_transaction_comes_in_pieces_of_wide_rows_too(items: Database) -> None:
    with opened(items) as monitor:
        items.execute("INSERT INTO items SELECT g, repeat('x', 100000) FROM generate_series(1, 50) g")
        batches = take(monitor.batches(after=None), 50)
        assert max(len(batch.changes) for batch in batches) <= 11
        assert ids(changes_of(batches)) == list(range(1, 51))
