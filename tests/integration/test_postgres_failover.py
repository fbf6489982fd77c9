"""A standby takes over, with all that the primary had committed, and without."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from structlog.testing import capture_logs

from cdc_tasks.changes import position_key
from harness.embedded_servers import PostgresServer
from harness.waiting import wait_until
from listener.core.source import GapError, SourceLostError
from listener.postgres.codec.decoder import WALPosition
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import read_postgres_status
from tests.support.listening import SAVED
from tests.support.postgres.findings import PROBLEM, Findings
from tests.support.publishing import router_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import Change
    from listener.core.source import Batch


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
        self.position: str | None = None
        self.changes: list[Change] = []
        self.monitor = self._monitor()
        self.monitor.open(saved=None)
        self._batches = self.monitor.batches(None)
        self.take(0)

    def _monitor(self, **options: Any) -> PostgresWALMonitor:
        ports = f"{self.primary.port},{self.standby.port}"
        url = f"postgresql://postgres@/postgres?host=127.0.0.1,127.0.0.1&port={ports}"
        return make_monitor(f"{url}&target_session_attrs=read-write", **options)

    def take(self, count: int, *, acknowledges: bool = True) -> list[int]:
        """Return the ids of the next `count` rows, as a listener that publishes and acknowledges them."""
        ids: list[int] = []
        batch: Batch
        for batch in self._batches:
            ids += [change.row["id"] for change in batch.changes]
            self.changes += batch.changes
            if acknowledges:
                self.position = batch.position
                self.monitor.acknowledge(batch.position)
            if len(ids) >= count:
                break
        return ids

    def has_slot(self) -> bool:
        """Return whether the standby has a copy of the slot."""
        execute(self.primary, "SELECT pg_log_standby_snapshot()")
        self.take(0)
        found = execute(self.standby, "SELECT synced AND NOT temporary FROM pg_replication_slots")
        return found == [(True,)]

    def wait_for_standby(self) -> None:
        """Return when the standby has all that the primary has committed."""
        ((end,),) = execute(self.primary, "SELECT pg_current_wal_lsn()::text")
        reached = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
        wait_until(lambda: execute(self.standby, reached) == [(True,)], what="the standby to have all")

    def cut_off(self) -> None:
        """Stop the replication to the standby."""
        execute(self.standby, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        gone = "SELECT 1 FROM pg_stat_wal_receiver"
        wait_until(lambda: not execute(self.standby, gone), what="it to be behind")

    def fail_over(self) -> None:
        self.primary.kill()
        execute(self.standby, "SELECT pg_promote()")

    def reopen(self, **options: Any) -> None:
        self.monitor.close()
        self.monitor = self._monitor(**options)
        self.monitor.open(saved=SAVED)
        self._batches = self.monitor.batches(self.position)


def make_monitor(url: str, **options: Any) -> PostgresWALMonitor:
    return PostgresWALMonitor(
        url, slot="cdc", publication="cdc", routes=router_to().routes, failover=True, **options
    )


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
    pair.wait_for_standby()
    pair.fail_over()
    with pytest.raises(SourceLostError):
        pair.take(1)
    insert(pair.standby, 11, 20)
    with capture_logs() as logs:
        pair.reopen()
        assert pair.take(10) == [*range(11, 21)]
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert (pair.position or "").startswith("2@0/")
    assert [change.position[:2] for change in pair.changes] == ["0/"] * 10 + ["2@"] * 10
    lag = read_postgres_status(pair.standby.url, "cdc", pair.position).lag_bytes
    assert (lag or 0) < 10_000  # the server writes some of its own
    pair.reopen()
    insert(pair.standby, 21, 21)
    assert pair.take(1) == [21]


def test_what_a_new_primary_writes_where_the_lost_log_was_is_not_taken_for_published(pair: _Pair) -> None:
    pair.cut_off()
    insert(pair.primary, 1, 200)
    assert pair.take(200) == [*range(1, 201)]
    pair.fail_over()
    insert(pair.standby, 1001, 1400)
    with capture_logs() as logs:
        pair.reopen()
        assert pair.take(400) == [*range(1001, 1401)]
    assert "failover_lost_changes" in [line["event"] for line in logs]
    assert len({change.id for change in pair.changes}) == 600
    keys = [position_key(change.position) for change in pair.changes]
    assert keys == sorted(set(keys))


def test_what_is_read_again_after_a_failover_has_the_ids_and_the_positions_that_it_had(pair: _Pair) -> None:
    insert(pair.primary, 1, 10)
    pair.take(10, acknowledges=False)
    pair.wait_for_standby()
    pair.fail_over()
    insert(pair.standby, 11, 20)
    pair.position = None  # a broker that lost its data
    for _ in range(2):
        pair.reopen()
        assert pair.take(20, acknowledges=False) == [*range(1, 21)]
    published = [(change.id, change.position) for change in pair.changes]
    assert (published[10:30], published[30:]) == (published[:10] + published[20:30], published[10:30])
    assert [position[:2] for _, position in published[10:30]] == ["0/"] * 10 + ["2@"] * 10


def test_log_that_did_not_concern_us_and_is_lost_in_a_failover_is_no_loss(pair: _Pair) -> None:
    insert(pair.primary, 1, 10)
    assert pair.take(10) == [*range(1, 11)]
    pair.wait_for_standby()
    pair.cut_off()
    execute(pair.primary, "CREATE TABLE noise AS SELECT generate_series(1, 10000)")
    ((end,),) = execute(pair.primary, "SELECT pg_current_wal_lsn()::text")

    def is_beyond() -> bool:
        pair.take(0)
        return WALPosition.parse(pair.position or "") >= WALPosition.before(parse_lsn(end))

    wait_until(is_beyond, what="the checkpoint to be where the standby is not")
    pair.fail_over()
    insert(pair.standby, 11, 300)
    with capture_logs() as logs:
        pair.reopen()
        assert pair.take(290) == [*range(11, 301)]
    assert [line for line in logs if line["log_level"] == "error"] == []


def test_a_standby_is_not_read_from_and_once_it_is_promoted_it_is(pair: _Pair) -> None:
    """Also where nobody asks for a primary in DATABASE_URL; it could be promoted in the middle of what it sends."""
    alone = f"postgresql://postgres@127.0.0.1:{pair.standby.port}/postgres"
    insert(pair.primary, 1, 10)
    pair.wait_for_standby()
    pair.monitor.close()
    reader = make_monitor(alone)
    with pytest.raises(SourceLostError, match="is a standby") as refused:
        reader.open(saved=SAVED)
    assert "target_session_attrs=read-write" in (refused.value.hint or "")
    found = Findings(alone, router_to(), name="cdc", failover=True)
    assert [(each.what, each.found) for each in found.all if each.state is PROBLEM] == [
        ("primary", "this server is a standby: the listener waits for a primary")
    ]
    (problem,) = read_postgres_status(alone, "cdc", pair.position).problems
    assert "is a standby" in problem
    assert execute(pair.standby, "SELECT count(*) FROM pg_replication_slots WHERE active") == [(0,)]
    pair.fail_over()
    insert(pair.standby, 11, 20)
    with closing(reader):
        reader.open(saved=SAVED)
        changes: list[Change] = []
        for batch in reader.batches(pair.position):
            changes += batch.changes
            if len(changes) == 20:
                break
    assert [change.row["id"] for change in changes] == [*range(1, 21)]
    assert [change.position[:2] for change in changes] == ["0/"] * 10 + ["2@"] * 10


def test_a_checkpoint_of_a_timeline_that_the_server_does_not_come_from_is_refused(pair: _Pair) -> None:
    pair.position = f"2@{pair.position}"
    with pytest.raises(GapError, match="after the end"):
        next(pair.monitor.batches(pair.position))
    pair.reopen(accept_gap=True)
    insert(pair.primary, 1, 1)
    assert pair.take(1) == [1]


def test_a_slot_that_a_standby_only_copies_is_not_read_there_and_no_other_is_advised(pair: _Pair) -> None:
    pair.monitor.close()
    monitor = PostgresWALMonitor(
        pair.standby.url, slot="cdc", publication="cdc", routes=router_to().routes, failover=True
    )
    with closing(monitor), pytest.raises(SourceLostError) as raised:
        monitor.open(saved=SAVED)
    assert "Name the primary in DATABASE_URL" in str(raised.value)
    assert "another replication slot" not in str(raised.value)
