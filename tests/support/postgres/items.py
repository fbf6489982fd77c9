"""A monitor on a table of items in PostgreSQL, and the position of its slot."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdc_tasks.changes import Change, EventType
from harness.waiting import Deadline, wait_until
from listener.core.source import Batch, Saved
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

__all__ = [
    "ROWS",
    "acknowledge_all",
    "active",
    "changes_of",
    "confirmed",
    "current",
    "ids",
    "make_monitor",
    "opened",
    "take",
    "wait_until_sent",
    "with_items",
]

ROWS = "INSERT INTO items SELECT g, 'item' FROM generate_series(%s, %s) g"


def with_items(database: Database) -> Database:
    """Create a table that the route selects, and one that it does not."""
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    database.execute("CREATE TABLE other (id bigint)")
    return database


def make_monitor(
    database: Database, *, url: str | None = None, slot: str | None = None, **options: Any
) -> PostgresWALMonitor:
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    return PostgresWALMonitor(
        url or database.url, slot=slot or database.name, publication="cdc", routes=router.routes, **options
    )


@contextmanager
def opened(database: Database, *, saved: Saved | None = None, **options: Any) -> Iterator[PostgresWALMonitor]:
    monitor = make_monitor(database, **options)
    monitor.open(saved=saved)
    try:
        yield monitor
    finally:
        monitor.close()


def ids(changes: list[Change]) -> list[int]:
    return [change.row["id"] for change in changes]


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    """Return batches until they have `count` changes."""
    taken: list[Batch] = []
    deadline = Deadline(20)
    while sum(len(batch.changes) for batch in taken) < count:
        deadline.check(f"only {taken} came")
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


def wait_until_sent(database: Database) -> None:
    """Return when the server has sent all commits so far: then the contents of the next batches are known."""
    goal = current(database)
    query = """SELECT pid FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
               WHERE slot_name = %s AND sent_lsn - '0/0'::pg_lsn >= %s"""
    wait_until(lambda: database.fetch(query, database.name, goal), what="the server to send all of it")


def active(database: Database) -> bool:
    rows = database.fetch("SELECT active FROM pg_replication_slots WHERE slot_name = %s", database.name)
    return bool(rows[0][0])


def current(database: Database) -> int:
    return parse_lsn(database.fetch("SELECT pg_current_wal_lsn()")[0][0])
