"""Commits that are in the log but invisible to sessions: they wait for a standby or replica that does not exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING

import psycopg2

from harness.waiting import wait_until
from tests.support.mysql.source import MySQLDatabase
from tests.support.publishing import in_background

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from tests.conftest import Database

__all__ = ["held_commits"]


@contextmanager
def held_commits(database: Database | MySQLDatabase, statement: str) -> Iterator[Future[None]]:
    """Make every commit of the server hang after it is logged, also that of `statement`; complete all at the end."""
    hold = _without_replica(database) if isinstance(database, MySQLDatabase) else _without_standby(database)
    with ThreadPoolExecutor(1) as pool, hold:
        yield pool.submit(_run, database, statement)


def _run(database: Database | MySQLDatabase, statement: str) -> None:
    """Run it in its own session."""
    if isinstance(database, MySQLDatabase):
        database.execute(statement)
        return
    with closing(database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


@contextmanager
def _without_standby(database: Database) -> Iterator[None]:
    is_over = Event()

    def probe() -> None:  # the checkpointer applies the setting a moment after the sessions
        with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not is_over.is_set():
                cursor.execute("SELECT pg_logical_emit_message(true, 'probe', '')")

    hangs = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        database.execute("SELECT pg_reload_conf()")
        with in_background(probe):
            try:
                wait_until(lambda: database.fetch(hangs), what="a commit to hang")
                yield
            finally:
                is_over.set()
                database.execute("ALTER SYSTEM RESET synchronous_standby_names")
                database.execute("SELECT pg_reload_conf()")
    finally:
        wait_until(lambda: not database.fetch(hangs), what="the commits to end")


@contextmanager
def _without_replica(database: MySQLDatabase) -> Iterator[None]:
    setting = f"rpl_semi_sync_{'master' if database.is_mariadb else 'source'}"
    plugins = "SELECT 1 FROM information_schema.plugins WHERE plugin_name = 'rpl_semi_sync_source'"
    if not (database.is_mariadb or database.fetch(plugins)):
        database.execute("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'")
    database.execute(
        f"SET GLOBAL {setting}_timeout = 100000000",
        f"SET GLOBAL {setting}_wait_point = 'AFTER_SYNC'",
        f"SET GLOBAL {setting}_enabled = ON",
    )
    try:
        yield
    finally:
        database.execute(f"SET GLOBAL {setting}_enabled = OFF")
