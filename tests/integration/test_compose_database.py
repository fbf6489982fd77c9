"""The database of docker-compose.yml, made by its own scripts on a real server: each role can do its part."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from harness.embedded_servers import PostgresServer
from listener.core.findings import raise_problems
from listener.postgres.tables.current_tables import read_current_tables
from listener.postgres.tables.publication import plan_publication, read_publication
from listener.routes import setup_router
from tests.support.compose import CHECKOUT, try_commands

_PASSWORDS = {"LISTENER_PASSWORD": "listener's", "WORKER_PASSWORD": "worker's"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(password="superuser's") as server:
        _execute(server.url, "CREATE DATABASE helpdesk")
        environment = {
            **os.environ,
            **_PASSWORDS,
            "PATH": f"{server.binaries}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGPASSWORD": "superuser's",
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "helpdesk",
        }
        schema = [
            "psql",
            "-U",
            "postgres",
            "-d",
            "helpdesk",
            "-f",
            "cdc_tasks/helpdesk/schema/postgresql.sql",
        ]
        for command in (schema, ["docker/postgres/roles.sh"]):
            subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True)
        yield server


def test_the_publication_made_with_the_database_is_the_one_that_the_routes_ask_for(
    server: PostgresServer,
) -> None:
    with closing(psycopg2.connect(_listener(server))) as connection:
        findings, watched, *_ = read_current_tables(connection, setup_router().routes)
        wanted = plan_publication(watched, connection.info.server_version)
        assert read_publication(connection, "cdc_tasks") == wanted
        raise_problems(findings)


def test_the_listener_may_read_the_log_and_no_table(server: PostgresServer) -> None:
    _execute(_listener(server), "SELECT pg_create_logical_replication_slot('try', 'pgoutput')")
    _execute(_listener(server), "SELECT pg_drop_replication_slot('try')")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        _execute(_listener(server), "SELECT * FROM tickets")


def test_a_worker_may_read_tables_and_write_accounts_and_preferences_alone(server: PostgresServer) -> None:
    worker = server.url_of("helpdesk", user="cdc_worker", password=_PASSWORDS["WORKER_PASSWORD"])
    _execute(worker, "SELECT * FROM connected_accounts")
    try_commands(worker, lambda statement: _execute(server.url_of("helpdesk"), statement))
    for statement in ("DELETE FROM tickets", "CREATE TABLE mine (id integer)"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            _execute(worker, statement)


def _listener(server: PostgresServer) -> str:
    return server.url_of("helpdesk", user="cdc_listener", password=_PASSWORDS["LISTENER_PASSWORD"])


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
