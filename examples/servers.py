"""The servers of an example: those that the environment names, or new ones out of Python wheels."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import psycopg2
import pymysql
import redis

from cdc_tasks.errors import CDCError
from harness.embedded_servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["DatabaseKind", "Servers", "connect", "forget_listener", "start_servers"]

DatabaseKind = Literal["postgresql", "mariadb"]

_NAME = "example"  # of the databases that are created
_TRIES = 1200  # to drop a slot, twenty a second


class ServerChoiceError(CDCError):
    """The example cannot use these servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The addresses; `own_broker` is the broker that was started, None if it is the user's."""

    database: str
    other_database: str | None
    broker: str
    own_broker: ValkeyServer | None
    is_own_database: bool  # of the example's: started for it, and gone with it
    clients: tuple[str, ...] = ()  # the directory of its psql, if the machine has none


def start_servers(
    cleanup: ExitStack, say: Callable[[str], None], kind: DatabaseKind | None, *, other_database: str | None
) -> Servers:
    """Return the servers; start those that no variable names. `other_database` is the variable of a second database.

    Raises ServerChoiceError and what a server raises that does not start.
    """
    clients: tuple[str, ...] = ()
    if url := os.environ.get("DATABASE_URL"):
        if kind is not None:
            raise ServerChoiceError(
                "DATABASE_URL and --database contradict each other.", hint="Leave out one."
            )
        other = os.environ.get(other_database) if other_database else None
        if other_database and not other:
            raise ServerChoiceError(
                f"{other_database} is not set.",
                hint=f"Set it to another database than that of DATABASE_URL: {other_database}=postgresql://…",
            )
        say("the database of DATABASE_URL")
    else:
        url, other, clients = _start_database(cleanup, say, kind or "postgresql")
    broker, own_broker = _broker(cleanup, say)
    return Servers(
        database=url,
        other_database=other,
        broker=broker,
        own_broker=own_broker,
        is_own_database=not os.environ.get("DATABASE_URL"),
        clients=clients,
    )


def _start_database(
    cleanup: ExitStack, say: Callable[[str], None], kind: DatabaseKind
) -> tuple[str, str | None, tuple[str, ...]]:
    if kind == "mariadb":
        from harness.mysql_servers import MariaDBServer

        mariadb = cleanup.enter_context(MariaDBServer())
        say(f"MariaDB on port {mariadb.port}")
        return mariadb.create_database(_NAME), None, ()
    postgres = cleanup.enter_context(PostgresServer())
    say(f"PostgreSQL on port {postgres.port}")
    names = (_NAME, f"{_NAME}_2")
    with closing(connect(postgres.url)) as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"CREATE DATABASE {name}")
    clients = () if shutil.which("psql") else (str(postgres.binaries),)
    return postgres.url_of(names[0]), postgres.url_of(names[1]), clients


def _broker(cleanup: ExitStack, say: Callable[[str], None]) -> tuple[str, ValkeyServer | None]:
    if url := os.environ.get("CELERY_BROKER_URL"):
        say("the broker of CELERY_BROKER_URL")
        return url, None
    valkey = cleanup.enter_context(ValkeyServer(append_only=True))
    say(f"Valkey on port {valkey.port}")
    return valkey.url, valkey


def connect(url: str) -> Any:
    """Return a session in which each statement is committed by itself."""
    address = urlsplit(url)
    if address.scheme.startswith("postgres"):
        connection = psycopg2.connect(url)
        connection.autocommit = True
        return connection
    return pymysql.connect(
        host=address.hostname,
        port=address.port or 3306,
        user=unquote(address.username or ""),
        password=unquote(address.password or ""),
        database=address.path.strip("/"),
        autocommit=True,
    )


def forget_listener(servers: Servers, name: str) -> None:
    """Drop what the listener `name` leaves on the user's servers: a slot that nobody reads keeps log forever.

    The listener has ended.
    """
    if servers.database.startswith("postgres") and not servers.is_own_database:
        with closing(connect(servers.database)) as connection, connection.cursor() as cursor:
            _drop_slot(cursor, name)
            cursor.execute(f'DROP PUBLICATION IF EXISTS "{name}"')
    if servers.broker.startswith(("redis", "unix")) and servers.own_broker is None:
        with redis.Redis.from_url(servers.broker) as client:
            for key in client.scan_iter(f"cdc:{name}:*"):
                client.delete(key)


def _drop_slot(cursor: Any, name: str) -> None:
    """Drop it as soon as the server has noticed that nobody reads it."""
    for _ in range(_TRIES):
        cursor.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE slot_name = %s AND database = current_database() AND NOT active",
            [name],
        )
        cursor.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", [name])
        if cursor.fetchone() is None:
            return
        time.sleep(0.05)
    raise ServerChoiceError(
        f"The replication slot {name} is still in use.", hint=f"SELECT pg_drop_replication_slot('{name}');"
    )
