"""What the server may drop while a pipelined batch is not confirmed yet."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from cdc_tasks.changes import EventType
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter
from tests.support.postgres.items import wait_until_sent

if TYPE_CHECKING:
    from tests.conftest import Database


def test_the_end_of_a_large_transaction_is_not_acknowledged_for_its_beginning(database: Database) -> None:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=router.routes, batch_size=2
    )
    with closing(monitor):
        monitor.open(saved=None)
        batches = monitor.batches(None)
        next(batches)
        database.execute("INSERT INTO items SELECT generate_series(1, 3)")
        wait_until_sent(database)
        beginning = next(batch for batch in batches if batch.changes)
        rest = next(batches)
        assert [(len(batch.changes), batch.pipelined) for batch in (beginning, rest)] == [
            (1, True),  # of two: the last one waits until it is known whether it ends the transaction
            (2, True),
        ]
        monitor.acknowledge(beginning.position)  # what is confirmed while the rest is in flight
    ((confirmed,),) = database.fetch(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", database.name
    )
    assert parse_lsn(confirmed) <= parse_lsn(beginning.position.partition(":")[0])
