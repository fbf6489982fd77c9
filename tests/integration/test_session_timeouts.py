"""Time limits that a database sets for its sessions: none of them is for the listener."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from listener.postgres.client.connection import connect, fetch_value
from listener.postgres.monitor import PostgresWALMonitor
from tests.support.publishing import router_to

if TYPE_CHECKING:
    from tests.conftest import Database


def test_a_pause_in_a_large_transaction_outlives_a_transaction_timeout(database: Database) -> None:
    database.execute("CREATE TABLE tickets (id int PRIMARY KEY, body text)")
    database.execute(f"ALTER DATABASE {database.name} SET transaction_timeout = '500ms'")
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication="cdc", routes=router_to().routes, batch_size=10_000
    )
    with closing(monitor):
        monitor.open(saved=None)
        database.execute("INSERT INTO tickets SELECT g, repeat('x', 300) FROM generate_series(1, 80000) g")
        count = 0
        for batch in monitor.batches(None):
            if batch.changes and not count:
                time.sleep(1)  # a broker that is away, a queue that is too long
            count += len(batch.changes)
            if count == 80_000:
                break


def test_an_idle_session_stays_open(database: Database) -> None:
    database.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '200ms'")
    with closing(connect(database.url)) as connection:
        time.sleep(0.5)
        assert fetch_value(connection, "SELECT 1") == 1
