"""A standby takes over, with all that the primary had committed, and without."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from structlog.testing import capture_logs

from demo.servers import PostgresServer
from listener.monitor import Gap, SourceLost
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import read_postgres_status
from tests.listening import SAVED
from tests.publishing import router_to
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.monitor import Batch


class _Standby(PostgresServer):
    """A copy of the primary that follows it, the slots for failover included."""

    def __init__(self, primary: PostgresServer) -> None:
        follows = {
            "hot_standby_feedback": "on",
            "sync_replication_slots": "on",
            "primary_slot_name": "standby",
        }
        super().__init__(settings=follows)
        self._primary = primary

    def _prepare(self) -> None:
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres dbname=postgres"
        copy = [str(self.binaries / "pg_basebackup"), "-D", str(self.data_dir), "-d", source]
        self._run([*copy, "-R", "-S", "standby", "-c", "fast"])


class _Pair:
    """A primary and its standby, and a listener that reads from whichever is the primary."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        self.primary = primary
        self.standby = standby
        self.position = ""
        self.monitor = self._monitor()
        self.monitor.open(saved=None)
        self._batches = self.monitor.batches(None)
        self.take(0)

    def _monitor(self, **options: Any) -> PostgresWALMonitor:
        ports = f"{self.primary.port},{self.standby.port}"
        url = f"postgresql://postgres@/postgres?host=127.0.0.1,127.0.0.1&port={ports}"
        return PostgresWALMonitor(
            f"{url}&target_session_attrs=read-write",
            slot="cdc",
            publication="cdc",
            routes=router_to().routes,
            failover=True,
            **options,
        )

    def take(self, count: int) -> list[int]:
        """Return the ids of the next `count` rows, as a listener that publishes and acknowledges them."""
        ids: list[int] = []
        batch: Batch
        for batch in self._batches:
            ids += [change.row["id"] for change in batch.changes]
            self.position = batch.position
            self.monitor.acknowledge(batch.position)
            if len(ids) >= count:
                break
        return ids

    def has_slot(self) -> bool:
        """Tell whether the standby has a copy of the slot."""
        execute(self.primary, "SELECT pg_log_standby_snapshot()")
        self.take(0)
        found = execute(self.standby, "SELECT synced AND NOT temporary FROM pg_replication_slots")
        return found == [(True,)]

    def fail_over(self) -> None:
        self.primary.kill()
        execute(self.standby, "SELECT pg_promote()")

    def reopen(self, **options: Any) -> None:
        self.monitor.close()
        self.monitor = self._monitor(**options)
        self.monitor.open(saved=SAVED)
        self._batches = self.monitor.batches(self.position)


def execute(server: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def insert(server: PostgresServer, first: int, last: int) -> None:
    execute(server, *(f"INSERT INTO tickets VALUES ({number})" for number in range(first, last + 1)))


@pytest.fixture
def pair() -> Iterator[_Pair]:
    with PostgresServer() as primary:
        execute(primary, "CREATE TABLE tickets (id int PRIMARY KEY)")
        execute(primary, "SELECT pg_create_physical_replication_slot('standby')")
        with _Standby(primary) as standby:
            pair = _Pair(primary, standby)
            wait_until(pair.has_slot, timeout=30, what="the standby to have the slot")
            yield pair
            pair.monitor.close()


def test_after_a_failover_it_goes_on_with_the_next_change(pair: _Pair) -> None:
    insert(pair.primary, 1, 10)
    assert pair.take(10) == [*range(1, 11)]
    ((end,),) = execute(pair.primary, "SELECT pg_current_wal_lsn()::text")
    reached = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
    wait_until(lambda: execute(pair.standby, reached) == [(True,)], what="the standby to have all")
    pair.fail_over()
    with pytest.raises(SourceLost):
        pair.take(1)
    insert(pair.standby, 11, 20)
    with capture_logs() as logs:
        pair.reopen()
        assert pair.take(10) == [*range(11, 21)]
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert pair.position.startswith("2@0/")
    lag = read_postgres_status(pair.standby.url, "cdc", pair.position).lag_bytes
    assert (lag or 0) < 10_000  # the server writes some of its own
    pair.reopen()
    insert(pair.standby, 21, 21)
    assert pair.take(1) == [21]


def test_what_a_new_primary_writes_where_the_lost_log_was_is_not_taken_for_published(pair: _Pair) -> None:
    execute(pair.standby, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
    wait_until(
        lambda: not execute(pair.standby, "SELECT 1 FROM pg_stat_wal_receiver"), what="it to be behind"
    )
    time.sleep(0.5)
    insert(pair.primary, 1, 200)
    assert pair.take(200) == [*range(1, 201)]
    pair.fail_over()
    insert(pair.standby, 1001, 1400)
    with capture_logs() as logs:
        pair.reopen()
        assert pair.take(400) == [*range(1001, 1401)]
    assert "failover_lost_changes" in [line["event"] for line in logs]


def test_a_checkpoint_of_a_timeline_that_the_server_does_not_come_from_is_refused(pair: _Pair) -> None:
    pair.position = f"2@{pair.position}"
    with pytest.raises(Gap, match="beyond the end"):
        next(pair.monitor.batches(pair.position))
    pair.reopen(accept_gap=True)
    insert(pair.primary, 1, 1)
    assert pair.take(1) == [1]
