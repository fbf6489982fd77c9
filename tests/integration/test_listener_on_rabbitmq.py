"""The listener as a user starts it, with RabbitMQ as its broker and the project's own Celery settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.server_process import free_port
from harness.waiting import at_most, wait_until
from listener.mysql.log.position import BinlogPosition
from tests.support.listening import wait_for_reader, wait_for_replica
from tests.support.metrics import Pages
from tests.support.mysql.source import MySQLDatabase
from tests.support.rabbitmq import drain, open_channel, row_ids

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker, Database

_CHECKOUT = Path(__file__).resolve().parents[2]
_ROUTES = """
from listener.router import BinlogRouter, EventType

def setup_router(schema):
    router = BinlogRouter()
    router.register(schema, "items", EventType.INSERT, "tests.task", queue="cdc_bulk")
    return router
"""


@pytest.mark.parametrize("source", [pytest.param("database", marks=pytest.mark.versions), "mariadb_database"])
def test_committed_rows_arrive_in_their_order_over_a_restart_of_the_listener(
    request: pytest.FixtureRequest,
    source: str,
    broker: Broker,
    rabbitmq_server: RabbitMQServer,
    tmp_path: Path,
) -> None:
    database: Database | MySQLDatabase = request.getfixturevalue(source)
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    (tmp_path / "rabbit_routes.py").write_text(_ROUTES)
    environment = {
        **os.environ,
        "DATABASE_URL": database.url,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CACHE_URL": broker.cache_url,
        "CDC_NAME": f"rabbit_{uuid.uuid4().hex[:8]}",
        "CDC_ROUTES": "rabbit_routes:setup_router",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{_CHECKOUT}",
    }
    with open_channel(rabbitmq_server) as channel:
        channel.queue_delete("cdc_bulk")
    _run(environment, database, broker, first=1, last=1500)
    _run(environment, database, broker, first=1501, last=2000)
    assert row_ids(drain(rabbitmq_server, "cdc_bulk")) == list(range(1, 2001))


def _run(
    environment: dict[str, str],
    database: Database | MySQLDatabase,
    broker: Broker,
    *,
    first: int,
    last: int,
) -> None:
    """Let a listener publish these rows, see that its numbers tell so, and stop it as an init system does."""
    pages = Pages(free_port())
    environment = {**environment, "CDC_METRICS_ADDRESS": pages.address}
    listener = subprocess.Popen([sys.executable, "-m", "listener", "run"], cwd=_CHECKOUT, env=environment)
    try:
        name = environment["CDC_NAME"]
        if isinstance(database, MySQLDatabase):
            _insert_into_mysql(database, broker, name, range(first, last + 1))
        else:
            _insert_into_postgres(database, name, first, last)
        assert broker.cache.hexists(f"cdc:{name}:checkpoint", "position")
        wait_until(
            lambda: pages.number("cdc_queue_messages", queue="cdc_bulk") == last, what="the queue's length"
        )
        # The checkpoint, from which it follows, is read every few seconds.
        wait_until(lambda: pages.number("cdc_lag_bytes") is not None, what="the lag", timeout=30)
        assert pages.number("cdc_changes_published_total", event="insert") == last - first + 1
        assert pages.number("cdc_queue_oldest_message_age_seconds", queue="cdc_bulk") is not None
        wait_until(lambda: pages.ready == (200, "ready, leader\n"), what="/readyz", timeout=30)
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(at_most(20)) == 0
    finally:
        listener.kill()
        listener.wait()


def _insert_into_postgres(database: Database, name: str, first: int, last: int) -> None:
    wait_for_reader(database, name, timeout=40)
    database.execute(f"INSERT INTO items SELECT generate_series({first}, {last})")
    end = database.fetch("SELECT pg_current_wal_lsn()")[0][0]
    passed = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn >= %s"
    wait_until(lambda: database.fetch(passed, name, end), what="the acknowledgement", timeout=40)


def _insert_into_mysql(database: MySQLDatabase, broker: Broker, name: str, numbers: range) -> None:
    wait_for_replica(database, name, timeout=40)
    database.execute(f"INSERT INTO items VALUES {', '.join(f'({number})' for number in numbers)}")
    end = database.end_of_log()

    def passed() -> bool:
        checkpoint = broker.cache.hget(f"cdc:{name}:checkpoint", "position") or b"none.0:0:0"
        return BinlogPosition.parse(checkpoint.decode()) >= end

    wait_until(passed, what="the checkpoint", timeout=40)
