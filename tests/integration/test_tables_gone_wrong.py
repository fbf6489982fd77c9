"""Tables that are altered while the listener runs, into what it would not start with."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from listener.core.source_status import SourceStatus
from listener.daemon.lag_alarm import LagAlarm
from listener.daemon.status import SavedPosition, Status
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import read_postgres_status
from tests.support.publishing import router_to

if TYPE_CHECKING:
    from tests.conftest import Database


def test_a_new_partition_whose_old_values_would_come_out_as_null_raises_an_alarm(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE tickets (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    any_database.execute("ALTER TABLE tickets REPLICA IDENTITY FULL")
    routes, name = router_to().routes, any_database.name
    monitor = PostgresWALMonitor(any_database.url, slot=name, publication="cdc", routes=routes)

    def look() -> SourceStatus:
        return read_postgres_status(any_database.url, name, None, publication="cdc", routes=routes)

    with closing(monitor):
        monitor.open(saved=None)
        assert look().problems == ()
        any_database.execute("CREATE TABLE tickets_0 PARTITION OF tickets FOR VALUES FROM (0) TO (9)")
        with capture_logs() as logs:
            LagAlarm(look, 10**12).look()
        source = look()
    ((wrong,),) = [line["problems"] for line in logs if line["event"] == "tables_wrong"]
    assert wrong.startswith("table public.tickets: REPLICA IDENTITY FULL, but not in each partition")
    status = Status(name=name, source=source, saved=SavedPosition(None, None, 0), lag_alarm=10**12)
    assert any(alarm.startswith(wrong) for alarm in status.alarms)
