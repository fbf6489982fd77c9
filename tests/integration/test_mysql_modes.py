"""What may change under a listener: GTIDs with tags, GTIDs switched on and off, logs that were reset or grow old."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from harness.given_mysql import KINDS, WITHOUT_GTIDS, MySQLServer, server_of_kind
from listener.core.source import GapError, SourceError, SourceLostError
from listener.mysql.log.position import BinlogPosition
from tests.support.mysql.source import MySQLSource, NumberSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.mysql.source import MySQLDatabase

_ON = ("OFF_PERMISSIVE", "ON_PERMISSIVE", "ON")
_OFF = ("ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF")


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[NumberSource]:
    """A table of numbers on a server of the test's own."""
    with server_of_kind(request.param) as server, NumberSource.on(server) as source:
        yield source


@pytest.fixture
def without_gtids() -> Iterator[NumberSource]:
    """The same on a MySQL on which GTIDs are off, for now."""
    with MySQLServer(arguments=WITHOUT_GTIDS) as server, NumberSource.on(server) as source:
        yield source


def _switch(source: NumberSource, *modes: str) -> None:
    source.execute(
        "SET GLOBAL enforce_gtid_consistency = ON", *(f"SET GLOBAL gtid_mode = {mode}" for mode in modes)
    )


def test_gtids_with_tags_are_read_and_asked_for(mysql_database: MySQLDatabase) -> None:
    longest = "t" * 32
    with MySQLSource(mysql_database) as source:
        source.execute("CREATE TABLE t (id int PRIMARY KEY)")
        source.watch()
        source.execute(
            "INSERT INTO t VALUES (1)",
            "SET gtid_next = 'AUTOMATIC:blue'",
            "INSERT INTO t VALUES (2)",
            "INSERT INTO t VALUES (3)",
            "SET gtid_next = 'AUTOMATIC'",
            "INSERT INTO t VALUES (4)",
        )
        changes = source.changes(4)
        assert [each.row["id"] for each in changes] == [1, 2, 3, 4]
        (server,) = {each.position.split(":")[0] for each in changes}
        numbers = [each.position.removeprefix(f"{server}:") for each in changes]
        assert numbers[1].startswith("blue:")
        assert int(numbers[2].split(":")[1]) == int(numbers[1].split(":")[1]) + 1
        assert abs(changes[1].committed_at.timestamp() - time.time()) < 900
        source.rest()
        source.stop()
        source.execute(f"SET gtid_next = 'AUTOMATIC:{longest}'", "INSERT INTO t VALUES (5)")
        source.watch()
        (last,) = source.changes(1)
        assert last.position == f"{server}:{longest}:1:0"
        source.rest()
        source.stop()
        source.watch()
        assert source.rest() == []


def test_gtids_that_are_switched_on_later_are_gone_by_from_then_on(without_gtids: NumberSource) -> None:
    source = without_gtids
    source.watch()
    source.insert(1)
    assert source.changes(1)[0].position.startswith("binlog.")
    _switch(source, *_ON)
    source.insert(2, 3)
    changes = source.changes(2)
    assert [each.row["id"] for each in changes] == [2, 3]
    ((server,),) = source.database.fetch("SELECT @@server_uuid")
    assert [each.position for each in changes] == [f"{server}:1:0", f"{server}:2:0"]
    assert source.position is not None
    assert BinlogPosition.parse(source.position).gtids is not None
    source.stop()
    source.insert(4)
    source.watch()
    assert source.numbers(1) == [4]


def test_gtids_may_be_switched_on_and_off_while_the_listener_is_away(without_gtids: NumberSource) -> None:
    source = without_gtids
    source.watch()
    source.insert(1)
    assert source.numbers(1) == [1]
    source.stop()
    source.insert(2)
    _switch(source, *_ON)
    source.insert(3)
    source.watch()
    with pytest.raises(SourceError, match="anonymous") as caught:
        source.changes(1)
    assert "gtid_mode = ON_PERMISSIVE;" in (caught.value.hint or "")
    source.stop()
    _switch(source, "ON_PERMISSIVE")
    source.watch()
    assert source.numbers(2) == [2, 3]
    source.stop()
    _switch(source, *_OFF)
    source.insert(4)
    source.watch()
    assert source.numbers(1) == [4]
    assert source.position is not None
    assert BinlogPosition.parse(source.position).gtids is None


def test_a_reset_is_a_gap_even_where_the_new_log_reaches_as_far(own: NumberSource) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.stop()
    own.database.reset_log()
    new = list(range(10, 40))
    own.insert(*new)
    assert own.position is not None
    ((_, size, *_),) = own.database.fetch("SHOW BINARY LOGS")
    assert size > BinlogPosition.parse(own.position).offset
    with pytest.raises(GapError, match="reset"):
        own.watch()
    own.stop()
    own.watch(accept_gap=True)
    assert own.numbers(len(new)) == new


def test_a_reset_under_a_listener_is_noticed_too(own: NumberSource) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.database.reset_log()
    own.insert(*range(10, 40))
    with pytest.raises((SourceError, SourceLostError)):
        own.changes(30)
    own.stop()
    with pytest.raises(GapError, match="reset"):
        own.watch()


def test_changes_that_are_so_old_that_the_log_is_soon_purged_are_warned_of(
    own: NumberSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.execute("SET GLOBAL binlog_expire_logs_seconds = 3600")
    own.watch()
    with capture_logs() as logs:
        own.insert(1)
        assert own.numbers(1) == [1]
        assert not [each for each in logs if each["event"] == "log_soon_purged"]
        monkeypatch.setattr("listener.mysql.monitor.time", lambda: time.time() + 3000)
        own.insert(2, 3)
        assert own.numbers(2) == [2, 3]
    (warning,) = [each for each in logs if each["event"] == "log_soon_purged"]
    assert warning["kept_seconds"] == 3600
    assert warning["age_seconds"] >= 3000
