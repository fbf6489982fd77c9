"""When the source fails over to its replica, reading goes on where it was, with the same ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.given_mysql import MariaDBServer, MySQLServer
from harness.waiting import wait_until
from listener.core.source import GapError
from listener.mysql.log.position import BinlogPosition
from tests.support.mysql.source import MySQLDatabase, MySQLSource

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPLICA = ("--server-id=2", "--log-slave-updates=ON", "--skip-slave-start")


@pytest.fixture(params=[MariaDBServer, MySQLServer], ids=["mariadb", "mysql"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[MySQLDatabase, MySQLDatabase]]:
    """A database on a primary, and the same on its replica."""
    options = _REPLICA if request.param is MariaDBServer else ("--server-id=2", "--skip-replica-start")
    with request.param() as primary, request.param(arguments=options) as replica:
        MySQLDatabase(name="mysql", server=primary).execute("CREATE DATABASE shop")
        follower = MySQLDatabase(name="mysql", server=replica)
        if request.param is MariaDBServer:
            follower.execute(
                f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, MASTER_USER='root',"
                " MASTER_USE_GTID=slave_pos",
                "START SLAVE",
            )
        else:
            follower.execute(
                f"CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={primary.port},"
                " SOURCE_USER='root', SOURCE_AUTO_POSITION=1",
                "START REPLICA",
            )
        yield MySQLDatabase(name="shop", server=primary), MySQLDatabase(name="shop", server=replica)


def test_reading_goes_on_at_the_replica_with_the_ids_that_changes_had(
    pair: tuple[MySQLDatabase, MySQLDatabase],
) -> None:
    primary, replica = pair
    with MySQLSource(primary) as source:
        source.execute("CREATE TABLE t (id int PRIMARY KEY)")
        source.watch(batch_size=100)
        start = source.position
        rows = ", ".join(f"({number})" for number in range(10, 1000))
        source.execute("INSERT INTO t VALUES (1)", f"INSERT INTO t VALUES {rows}", "INSERT INTO t VALUES (2)")
        seen = [(each.id, each.position, each.committed_at, each.row) for each in source.changes(992)]
        end = primary_end = source.position
    wait_until(lambda: _count(replica) == 992, timeout=30, what="the replica to follow")
    stop = "STOP SLAVE" if replica.is_mariadb else "STOP REPLICA"
    replica.execute(stop)
    with MySQLSource(replica, position=start) as source:
        source.watch()
        assert [(e.id, e.position, e.committed_at, e.row) for e in source.changes(992)] == seen
    with MySQLSource(replica, position=end) as source:
        source.watch()
        source.execute("INSERT INTO t VALUES (3)")
        assert [each.row["id"] for each in source.changes(1)] == [3]
        source.rest()
        end = source.position
    assert end is not None
    assert BinlogPosition.parse(end).server == _name(replica)  # whose files they are now
    with MySQLSource(replica, position=end) as source:
        source.watch()
        assert source.rest() == []
    _check_what_the_replica_has_not_got(primary, replica, primary_end)


def _check_what_the_replica_has_not_got(
    primary: MySQLDatabase, replica: MySQLDatabase, end: str | None
) -> None:
    """After an accepted gap neither a restart nor a backfill waits for what is gone with the primary."""
    with MySQLSource(primary, position=end) as source:
        source.watch()
        source.execute("INSERT INTO t VALUES (4)")
        assert [each.row["id"] for each in source.changes(1)] == [4]
        source.rest()
        end = source.position
    replica.purge_logs()
    replica.execute("INSERT INTO t VALUES (5)")
    with MySQLSource(replica, position=end) as source:
        with pytest.raises(GapError):
            source.watch()
        source.stop()
        source.watch(accept_gap=True)
        assert [each.row["id"] for each in source.changes(1)] == [5]
        source.rest()
        source.stop()
        source.watch()
        assert {each.row["id"] for each in source.reads("t")} >= {1, 2, 3, 5}


def _name(database: MySQLDatabase) -> str:
    variable = "server_id" if database.is_mariadb else "server_uuid"
    return str(database.fetch(f"SELECT @@{variable}")[0][0])


def _count(database: MySQLDatabase) -> int:
    tables = [row[0] for row in MySQLDatabase(name="mysql", server=database.server).fetch(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop'"
    )]  # fmt: skip
    return database.fetch("SELECT count(*) FROM t")[0][0] if tables else 0
