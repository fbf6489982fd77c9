"""The servers that the demo and the tests start: real, on their own, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
import redis
from kombu import Connection, Queue

from harness.embedded_servers import PostgresServer, ServerError, ValkeyServer
from harness.waiting import at_most, wait_until

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker, Database

_CHECKOUT = Path(__file__).resolve().parents[2]


def test_a_fresh_database_is_ready_for_logical_replication(any_database: Database) -> None:
    assert any_database.fetch("SELECT current_database(), current_setting('wal_level')") == [
        (any_database.name, "logical")
    ]


def test_wal2json_is_there_on_the_older_postgresql(debian_database: Database) -> None:
    debian_database.execute("SELECT pg_create_logical_replication_slot('wal2json_try', 'wal2json')")
    assert debian_database.fetch(
        "SELECT plugin FROM pg_replication_slots WHERE slot_name = 'wal2json_try'"
    ) == [("wal2json",)]


def test_a_broker_is_empty_and_never_evicts(any_broker: Broker) -> None:
    assert any_broker.client.dbsize() == any_broker.cache.dbsize() == 0
    assert any_broker.client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_quorum_queue_works_on_rabbitmq(rabbitmq_server: RabbitMQServer) -> None:
    queue = Queue("quorum_try", queue_arguments={"x-queue-type": "quorum"})
    with Connection(rabbitmq_server.url, transport_options={"confirm_publish": True}) as connection:
        with connection.Producer() as producer:
            producer.publish({"n": 1}, routing_key="quorum_try", declare=[queue])
        with connection.SimpleQueue(queue) as simple:
            message = simple.get(timeout=at_most(10))
            message.ack()
            assert message.payload == {"n": 1}


def test_postgresql_keeps_its_data_over_a_crash_and_a_restart() -> None:
    with PostgresServer(fsync=True) as server:
        port = server.port
        _execute(server.url, "CREATE TABLE kept AS SELECT 1 AS number")
        server.kill()
        server.start()
        assert _execute(server.url, "SELECT number FROM kept") == [(1,)]
        server.restart()
        assert server.port == port
        assert _execute(server.url, "SELECT number FROM kept") == [(1,)]


def test_postgresql_asks_for_the_password_it_was_given() -> None:
    with PostgresServer(password="it's: a/secret") as server:
        assert _execute(server.url, "SELECT 1") == [(1,)]
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(server.url_of("postgres", password="wrong"))


def test_valkey_keeps_its_data_with_aof_until_it_is_wiped() -> None:
    with ValkeyServer(append_only=True, password="a secret") as server:
        _client(server).set("key", "value")
        server.kill()
        server.start()
        assert _client(server).get("key") == b"value"
        server.restart(keep_data=False)
        assert _client(server).get("key") is None


def test_a_server_that_does_not_start_shows_the_end_of_its_log() -> None:
    with (
        pytest.raises(ServerError, match="invalid value for parameter"),
        PostgresServer(settings={"wal_level": "none"}),
    ):
        pass


def test_servers_die_with_the_program_that_started_them() -> None:
    program = (
        "from harness.embedded_servers import PostgresServer, ValkeyServer\n"
        "servers = PostgresServer().start(), ValkeyServer().start()\n"
        "print(*[server.pid for server in servers], *[server.home for server in servers], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=_CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        postgres_pid, valkey_pid, *homes = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: _is_gone(int(postgres_pid)) and _is_gone(int(valkey_pid)), what="the servers to die")
    for home in homes:
        shutil.rmtree(home)


def test_the_directory_of_a_closed_server_is_gone() -> None:
    with ValkeyServer() as server:
        assert server.data_dir.is_dir()
    assert not server.home.exists()


def _execute(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _client(server: ValkeyServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, single_connection_client=True)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()  # ended, and waits for init to notice
