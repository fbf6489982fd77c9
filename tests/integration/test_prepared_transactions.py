"""Transactions in two phases: a slot waits for them, and their changes come when they are committed."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
from structlog.testing import capture_logs

from cdc_tasks.changes import EventType
from harness.embedded_servers import PostgresServer
from harness.waiting import at_most, wait_until
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter
from tests.support.postgres.findings import WARNING, Findings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_prepared_transactions": "5"}) as server:
        _execute(server, "CREATE TABLE items (id int PRIMARY KEY)")
        yield server


def _execute(server: PostgresServer, *statements: str) -> None:
    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)


def test_a_prepared_transaction_that_holds_a_slot_up_is_named(server: PostgresServer) -> None:
    _execute(server, "BEGIN", "INSERT INTO items VALUES (1)", "PREPARE TRANSACTION 'it''s mine'")
    found = Findings(server.url)["slot ours"]
    assert (found.state, found.hint) == (
        WARNING,
        "COMMIT PREPARED 'it''s mine';   or: ROLLBACK PREPARED 'it''s mine';",
    )
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "task")
    monitor = PostgresWALMonitor(server.url, slot="cdc", publication="cdc", routes=router.routes)
    with closing(monitor), capture_logs() as logs:
        opening = threading.Thread(target=monitor.open, kwargs={"saved": None})
        opening.start()
        wait_until(lambda: any("prepared" in line for line in logs), what="the warning")
        assert [line["prepared"] for line in logs if "prepared" in line] == [["it's mine"]]
        _execute(server, "COMMIT PREPARED 'it''s mine'")
        opening.join(at_most(20))
        assert not opening.is_alive()

        _execute(server, "BEGIN", "INSERT INTO items VALUES (2)", "PREPARE TRANSACTION 'later'")
        _execute(server, "INSERT INTO items VALUES (3)", "COMMIT PREPARED 'later'")
        changes = (change for batch in monitor.batches(None) for change in batch.changes)
        assert [next(changes).row["id"] for _ in range(2)] == [3, 2]
