"""What the monitor acknowledges on real servers: all that is published, and no more."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from harness.embedded_servers import PostgresServer
from harness.waiting import at_most, wait_until
from listener.core.source import Saved
from listener.postgres.codec.decoder import WALPosition
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from tests.support.listening import SAVED
from tests.support.postgres.history import NAME, History
from tests.support.postgres.items import (
    ROWS,
    acknowledge_all,
    changes_of,
    confirmed,
    ids,
    opened,
    take,
    with_items,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.daemon.loop import Listener
    from tests.conftest import Database


@pytest.fixture
def items(database: Database) -> Database:
    return with_items(database)


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(items: Database) -> None:
    with opened(items) as monitor:
        items.execute(ROWS, 1, 1)
        batches = monitor.batches(after=None)
        take(batches, 1)
        acknowledge_all(items, monitor, batches)
        items.execute(ROWS, 2, 2)
        take(batches, 1)
    with opened(items, saved=SAVED) as monitor:
        assert ids(changes_of(take(monitor.batches(after=None), 1))) == [2]


def test_the_log_of_a_database_with_idle_selected_tables_is_acknowledged(items: Database) -> None:
    with opened(items) as monitor:
        batches = monitor.batches(after=None)
        for number in range(5):
            items.execute("INSERT INTO other VALUES (%s)", number)
        acknowledge_all(items, monitor, batches)


def test_nothing_is_acknowledged_that_is_not_published(items: Database) -> None:
    with opened(items) as monitor:
        before = confirmed(items)
        items.execute(ROWS, 1, 3)
        batches = monitor.batches(after=None)
        take(batches, 3)
        for _ in range(8):  # two seconds of ticks, with keepalives that the server wants answered
            items.execute("SELECT pg_switch_wal()")
            next(batches)
        assert confirmed(items) == before


def test_a_transaction_that_began_before_the_last_acknowledgement_is_not_acknowledged_with_it(
    items: Database,
) -> None:
    """Its first messages are before the acknowledged LSN, and still come again."""
    impatient = f"{items.url}?options={quote('-c wal_sender_timeout=1500')}"
    with (
        opened(items, batch_size=2, url=impatient) as monitor,
        items.connect() as old,
        items.connect() as older,
    ):
        batches = monitor.batches(after=None)
        next(batches)
        for connection, first in ((old, 100), (older, 200)):
            connection.cursor().execute(ROWS, (first, first + 2))
        items.execute(ROWS, 1, 1)
        take(batches, 1)
        acknowledge_all(items, monitor, batches)  # beyond the first rows of the two open transactions
        before = confirmed(items)
        old.commit()
        older.commit()
        wait_until(lambda: items.fetch("SELECT count(*) FROM items")[0][0] == 7, what="the rows")
        # One after 100: the last change of a batch waits until it is known whether it ends its transaction.
        assert ids(changes_of(take(batches, 2))) == [100, 101, 102]
        assert ids(changes_of(take(batches, 3))) == [200, 201, 202]
        for _ in range(12):  # ticks, with keepalives that the server wants answered
            items.execute("SELECT pg_switch_wal()")
            next(batches)
        assert confirmed(items) == before


@pytest.mark.parametrize("rows", [0, 20])
@pytest.mark.parametrize("window", [0.0, 600.0])
def test_a_server_that_shuts_down_does_not_wait_for_acknowledgements_and_knows_no_more_than_the_broker(
    rows: int, window: float
) -> None:
    with (
        History(PostgresServer, "pgoutput") as history,
        capture_logs() as logs,
        in_thread(history.listener(replay_window=window)),
    ):
        wait_until(
            lambda: history.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"),
            what="the listener to read",
        )
        history.insert(1, rows)
        wait_until(lambda: len(history.ids()) == rows, what="the rows")
        history.execute("INSERT INTO other VALUES (1)")
        history.server.stop()
        assert "database system is shut down" in history.server.log, "it had to be killed"
        wait_until(lambda: [line for line in logs if line["event"] == "reading_again"], what="it to notice")
        checkpoint = WALPosition.parse(history.checkpoint)
        history.server.start()
        assert WALPosition.before(parse_lsn(history.confirmed)) <= checkpoint
        history.insert(rows + 1, rows + 5)
        wait_until(lambda: history.ids() == [*range(1, rows + 6)], timeout=30, what="the rest")


def test_a_listener_that_ends_while_its_server_does_keeps_what_it_has_told_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the machine is shut down, right after the server has asked for what was received."""
    monkeypatch.setattr("listener.postgres.monitor._IDLE_EVERY", 600)
    with History(PostgresServer, "pgoutput") as history:
        saved = Saved(history.checkpoint)
        monitor = PostgresWALMonitor(
            history.server.url, slot=NAME, publication=NAME, routes=history.router.routes
        )
        with closing(monitor):
            monitor.open(saved=saved)
            batches = monitor.batches(saved.position)
            came = [next(batches)]
            history.execute("INSERT INTO other VALUES (1)")
            ends = threading.Thread(target=history.server.stop)
            ends.start()
            stream = monitor._stream

            def has_answered() -> bool:
                came.append(next(batches))
                return stream.has_answered

            wait_until(has_answered, what="the server to ask")
            monitor.stop()
            came += batches
        ends.join()
        history.server.start()
        assert WALPosition.before(parse_lsn(history.confirmed)) <= WALPosition.parse(came[-1].position)


@contextmanager
def in_thread(listener: Listener) -> Iterator[None]:
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        yield
    finally:
        listener.stop()
        thread.join(at_most(20))
