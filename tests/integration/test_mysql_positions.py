"""Where reading goes on: restarts, rotation, resets, purged logs, on MariaDB and on MySQL, with GTIDs and without."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from listener.monitor import Gap, SourceLost
from listener.mysql.errors import ServerIdTaken
from listener.mysql.monitor import BinlogMonitor
from listener.mysql.position import BinlogPosition
from tests.mysql_servers import MariaDBServer, MySQLServer
from tests.mysql_source import MySQLDatabase, MySQLSource
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = ("--gtid-mode=OFF", "--enforce-gtid-consistency=OFF")


@pytest.fixture(params=["mariadb", "mysql", "mysql without GTIDs"], scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    """A server that a test may restart, reset and purge."""
    server = MariaDBServer() if request.param == "mariadb" else MySQLServer()
    if request.param == "mysql without GTIDs":
        server.arguments.extend(_FILES)
    with server:
        yield server


@pytest.fixture
def own(own_server: MariaDBServer | MySQLServer) -> Iterator[MySQLSource]:
    """A watched table on it."""
    name = "own"
    MySQLDatabase(name="mysql", server=own_server).execute(
        f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}"
    )
    with MySQLSource(MySQLDatabase(name=name, server=own_server), name=name) as source:
        source.execute("CREATE TABLE t (id int PRIMARY KEY)")
        yield source


def _insert(source: MySQLSource, *numbers: int) -> None:
    source.execute(*(f"INSERT INTO t VALUES ({number})" for number in numbers))


def _numbers(source: MySQLSource, count: int) -> list[int]:
    return [each.row["id"] for each in source.changes(count)]


def _reset(source: MySQLSource) -> None:
    new = not source.database.is_mariadb
    source.execute("RESET BINARY LOGS AND GTIDS" if new else "RESET MASTER")


def test_a_first_start_reads_from_now_on_and_the_next_from_where_it_was(own: MySQLSource) -> None:
    _insert(own, 1)
    own.watch()
    own.stop()
    _insert(own, 2)
    own.watch()
    assert _numbers(own, 1) == [2]
    own.stop()
    _insert(own, 3)
    own.watch()
    assert _numbers(own, 1) == [3]


def test_a_first_start_may_read_the_oldest_log_first(own: MySQLSource) -> None:
    _reset(own)
    _insert(own, 1)
    own.execute("FLUSH BINARY LOGS")
    _insert(own, 2)
    own.watch(from_start=True)
    assert _numbers(own, 2) == [1, 2]


def test_reading_goes_on_within_a_transaction_and_the_ids_stay_the_same(own: MySQLSource) -> None:
    rows = ", ".join(f"({number})" for number in range(5000))
    own.watch(batch_size=100)
    _insert(own, 10_000)
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


def test_reading_goes_on_through_rotated_logs(own: MySQLSource) -> None:
    own.watch()
    for number in range(5):
        _insert(own, number)
        own.execute("FLUSH BINARY LOGS")
    assert _numbers(own, 5) == list(range(5))
    own.stop()
    _insert(own, 7)
    own.execute("FLUSH BINARY LOGS")
    _insert(own, 8)
    own.watch()
    assert _numbers(own, 2) == [7, 8]


def test_an_idle_listener_moves_on_with_the_log(own: MySQLSource) -> None:
    own.execute("CREATE TABLE IF NOT EXISTS noise (id int)")
    own.watch("t")
    own.execute("FLUSH BINARY LOGS", "INSERT INTO noise VALUES (1)", "FLUSH BINARY LOGS")
    file = own.database.fetch("SHOW BINARY LOGS")[-1][0]

    def reached() -> bool:
        own.rest()
        return BinlogPosition.parse(own.position or "").file == file

    wait_until(reached, what="the position to reach the newest log")


def test_a_restart_of_the_server_loses_nothing(own: MySQLSource) -> None:
    own.watch()
    _insert(own, 1)
    assert _numbers(own, 1) == [1]
    own.database.server.restart()
    with pytest.raises(SourceLost):
        own.changes(1)
    own.stop()
    _insert(own, 2)
    own.watch()
    assert _numbers(own, 1) == [2]
    own.stop()
    _insert(own, 3)
    own.database.server.kill()
    own.database.server.start()
    own.watch()
    assert _numbers(own, 1) == [3]


def test_purged_logs_are_a_gap_that_names_what_is_missing(own: MySQLSource) -> None:
    own.watch()
    _insert(own, 1)
    assert _numbers(own, 1) == [1]
    own.stop()
    _insert(own, 2)
    own.execute("FLUSH BINARY LOGS")
    _insert(own, 3)
    newest = own.database.fetch("SHOW BINARY LOGS")[-1][0]
    _purge(own, newest)
    with pytest.raises(Gap, match="purged") as caught:
        own.watch()
    assert "--accept-gap" in (caught.value.hint or "")
    own.stop()
    own.watch(accept_gap=True)
    assert _numbers(own, 1) == [3]


def test_a_reset_of_the_log_is_a_gap(own: MySQLSource) -> None:
    own.execute("FLUSH BINARY LOGS")
    own.watch()
    _insert(own, 1)
    assert _numbers(own, 1) == [1]
    own.stop()
    _reset(own)
    _insert(own, 2)
    with pytest.raises(Gap, match="reset"):
        own.watch()
    own.stop()
    own.watch(accept_gap=True)
    assert _numbers(own, 1) == [2]


def test_a_second_listener_waits_and_takes_over(own: MySQLSource) -> None:
    own.watch()
    _insert(own, 1)
    _numbers(own, 1)
    other = MySQLSource(own.database, name=own.name, position=own.position)
    waiting = threading.Thread(target=other.watch)
    waiting.start()
    try:
        wait_until(lambda: other._monitor is not None, what="the other to start")
        waiting.join(timeout=1.5)
        assert waiting.is_alive()
        _insert(own, 2)
        assert _numbers(own, 1) == [2]
        other.position = own.position
    finally:
        own.stop()
        waiting.join(timeout=20)
    with other:
        _insert(own, 3)
        assert _numbers(other, 1) == [3]


def test_a_standby_stops_when_it_is_told_to(own: MySQLSource) -> None:
    own.watch()
    other = BinlogMonitor(own.database.url, name=own.name, routes=())
    waiting = threading.Thread(target=lambda: other.open(resumes=False))
    waiting.start()
    other.stop()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    other.close()


def test_a_lost_lock_is_noticed(own: MySQLSource) -> None:
    own.watch()
    ((session,),) = own.database.fetch("SELECT IS_USED_LOCK(%s)", f"cdc-tasks:{own.name}")
    own.execute(f"KILL {session}")
    with pytest.raises(SourceLost, match="lost"):
        own.changes(1)


def test_a_server_id_that_is_taken_is_noticed_and_not_fought_over(own: MySQLSource) -> None:
    own.watch(server_id=4711)
    other = BinlogMonitor(own.database.url, name="another", routes=(), server_id=4711)
    try:
        with pytest.raises(ServerIdTaken) as caught:
            _read_both(other, own)
    finally:
        other.close()
    assert "CDC_SERVER_ID" in (caught.value.hint or "")


def _read_both(other: BinlogMonitor, own: MySQLSource) -> None:
    other.open(resumes=False)
    for _ in zip(other.batches(None), range(100), strict=False):
        own.rest()


def _purge(source: MySQLSource, newest: str) -> None:
    """Purge all logs but the newest: once no connection reads from them any more."""

    def purged() -> bool:
        source.execute(f"PURGE BINARY LOGS TO '{newest}'")
        return source.database.fetch("SHOW BINARY LOGS")[0][0] == newest

    wait_until(purged, what="the logs to be purged", timeout=30)
