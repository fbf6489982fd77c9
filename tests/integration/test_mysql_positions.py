"""Where reading goes on: restarts, rotation, resets, purged logs, on MariaDB and on MySQL, with GTIDs and without."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from harness.given_mysql import KINDS, server_of_kind
from harness.waiting import at_most, wait_until
from listener.core.source import GapError, SourceLostError
from listener.mysql.errors import ServerIdTakenError
from listener.mysql.log.position import BinlogPosition
from listener.mysql.monitor import BinlogMonitor
from tests.support.mysql.source import NumberSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.given_mysql import MariaDBServer, MySQLServer


@pytest.fixture(params=KINDS, scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    """A server that a test may restart, reset and purge."""
    with server_of_kind(request.param) as server:
        yield server


@pytest.fixture
def own(own_server: MariaDBServer | MySQLServer) -> Iterator[NumberSource]:
    """A table of numbers on it."""
    with NumberSource.on(own_server) as source:
        yield source


def test_a_first_start_reads_from_now_on_and_the_next_from_where_it_was(own: NumberSource) -> None:
    own.insert(1)
    own.watch()
    own.stop()
    own.insert(2)
    own.watch()
    assert own.numbers(1) == [2]
    own.stop()
    own.insert(3)
    own.watch()
    assert own.numbers(1) == [3]


def test_a_first_start_may_read_the_oldest_log_first(own: NumberSource) -> None:
    own.database.reset_log()
    own.insert(1)
    own.execute("FLUSH BINARY LOGS")
    own.insert(2)
    own.watch(from_start=True)
    assert own.numbers(2) == [1, 2]


def test_reading_goes_on_within_a_transaction_and_the_ids_stay_the_same(own: NumberSource) -> None:
    rows = ", ".join(f"({number})" for number in range(5000))
    own.watch(batch_size=100)
    own.insert(10_000)
    own.execute(f"INSERT INTO t VALUES {rows}")
    start = own.position
    seen: list[str] = []
    for batch in own._batches:
        seen += [each.id for each in batch.changes]
        if len(seen) > 2000:
            break
    own.stop()
    part, rest = len(seen), BinlogPosition.parse(batch.position)
    assert 2000 < part < 5001
    assert rest.ordinal == part - 2
    own.position = batch.position
    own.watch()
    seen += [each.id for each in own.changes(5001 - part)]
    own.stop()
    own.position = start
    own.watch()
    assert [each.id for each in own.changes(5001)] == seen
    assert len(set(seen)) == 5001


def test_reading_goes_on_through_rotated_logs(own: NumberSource) -> None:
    own.watch()
    for number in range(5):
        own.insert(number)
        own.execute("FLUSH BINARY LOGS")
    assert own.numbers(5) == list(range(5))
    own.stop()
    own.insert(7)
    own.execute("FLUSH BINARY LOGS")
    own.insert(8)
    own.watch()
    assert own.numbers(2) == [7, 8]


def test_an_idle_listener_moves_on_with_the_log(own: NumberSource) -> None:
    own.execute("CREATE TABLE IF NOT EXISTS noise (id int)")
    own.watch("t")
    own.execute("FLUSH BINARY LOGS", "INSERT INTO noise VALUES (1)", "FLUSH BINARY LOGS")
    file = own.database.newest_log()

    def reached() -> bool:
        own.rest()
        return BinlogPosition.parse(own.position or "").file == file

    wait_until(reached, what="the position to reach the newest log")


def test_a_restart_of_the_server_loses_nothing(
    own: NumberSource, own_server: MariaDBServer | MySQLServer
) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own_server.restart()
    with pytest.raises(SourceLostError):
        own.changes(1)
    own.stop()
    own.insert(2)
    own.watch()
    assert own.numbers(1) == [2]
    own.stop()
    own.insert(3)
    own_server.kill()
    own_server.start()
    own.watch()
    assert own.numbers(1) == [3]


def test_purged_logs_are_a_gap_that_names_what_is_missing(own: NumberSource) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.stop()
    own.insert(2)
    own.execute("FLUSH BINARY LOGS")
    own.insert(3)
    own.database.purge_logs_before(own.database.newest_log())
    with pytest.raises(GapError, match="purged") as caught:
        own.watch()
    assert "--accept-gap" in (caught.value.hint or "")
    own.stop()
    own.watch(accept_gap=True)
    assert own.numbers(1) == [3]


def test_a_reset_of_the_log_is_a_gap(own: NumberSource) -> None:
    own.execute("FLUSH BINARY LOGS")
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.stop()
    own.database.reset_log()
    own.insert(2)
    with pytest.raises(GapError, match="reset"):
        own.watch()
    own.stop()
    own.watch(accept_gap=True)
    assert own.numbers(1) == [2]


def test_a_second_listener_waits_and_takes_over(own: NumberSource) -> None:
    own.watch()
    own.insert(1)
    own.numbers(1)
    other = NumberSource(own.database, name=own.name, position=own.position)
    waiting = threading.Thread(target=other.watch)
    waiting.start()
    try:
        wait_until(lambda: other._monitor is not None, what="the other to start")
        waiting.join(timeout=1.5)
        assert waiting.is_alive()
        own.insert(2)
        assert own.numbers(1) == [2]
        other.position = own.position
    finally:
        own.stop()
        waiting.join(timeout=at_most(20))
    with other:
        own.insert(3)
        assert other.numbers(1) == [3]


def test_a_standby_stops_when_it_is_told_to(own: NumberSource) -> None:
    own.watch()
    other = BinlogMonitor(own.database.url, name=own.name, routes=())
    waiting = threading.Thread(target=lambda: other.open(saved=None))
    waiting.start()
    other.stop()
    waiting.join(timeout=at_most(10))
    assert not waiting.is_alive()
    other.close()


def test_a_lost_lock_is_noticed(own: NumberSource) -> None:
    own.watch()
    ((session,),) = own.database.fetch("SELECT IS_USED_LOCK(%s)", f"cdc-tasks:{own.name}")
    own.execute(f"KILL {session}")
    with pytest.raises(SourceLostError, match="lost"):
        own.changes(1)


def test_a_server_id_that_is_taken_is_noticed_and_not_fought_over(own: NumberSource) -> None:
    own.watch(server_id=4711)
    other = BinlogMonitor(own.database.url, name="another", routes=(), server_id=4711)
    try:
        with pytest.raises(ServerIdTakenError) as caught:
            _read_both(other, own)
    finally:
        other.close()
    assert "CDC_SERVER_ID" in (caught.value.hint or "")


def _read_both(other: BinlogMonitor, own: NumberSource) -> None:
    other.open(saved=None)
    for _ in zip(other.batches(None), range(100), strict=False):
        own.rest()
