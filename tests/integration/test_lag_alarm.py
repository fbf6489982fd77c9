"""The alarm about log that is kept for us, on a real slot without a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from harness.waiting import wait_until
from listener.daemon.lag_alarm import LagAlarm
from listener.postgres.status import read_postgres_status

if TYPE_CHECKING:
    from tests.conftest import Database


def test_a_slot_that_keeps_too_much_log_raises_the_alarm_until_it_is_over(database: Database) -> None:
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", database.name)
    database.execute("CREATE TABLE filler AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 2000) g")
    with (
        structlog.testing.capture_logs() as logs,
        LagAlarm(lambda: read_postgres_status(database.url, database.name, None), 100_000, every=0.05),
    ):
        wait_until(lambda: [each for each in logs if each["event"] == "lag"], what="the alarm")
        database.execute("SELECT pg_drop_replication_slot(%s)", database.name)
        wait_until(lambda: [each for each in logs if each["event"] == "lag_over"], what="its end")
    assert logs[0]["retained_bytes"] > 100_000


def test_a_database_that_is_away_is_no_alarm() -> None:
    with structlog.testing.capture_logs() as logs:
        LagAlarm(lambda: read_postgres_status("postgresql://127.0.0.1:1/x", "slot", None), 1).look()
    assert [each["log_level"] for each in logs] == ["debug"]
