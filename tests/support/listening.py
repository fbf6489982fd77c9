"""Runs a listener in a thread of the test, and waits until it reads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.waiting import at_most, wait_until
from listener.core.source import Saved
from listener.mysql.client.single_reader_lock import lock_name
from tests.support.mysql.source import MySQLDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.daemon.loop import Listener
    from tests.conftest import Database

__all__ = ["SAVED", "running", "wait_for_listener", "wait_for_reader", "wait_for_replica"]

SAVED = Saved("0/0:0")  # something was published before; the test passes its position to `batches`


def wait_for_listener(database: Database | MySQLDatabase, *, timeout: float = 10) -> None:
    """Return when the listener with the database's name reads later commits."""
    if isinstance(database, MySQLDatabase):
        wait_for_replica(database, database.name, timeout=timeout)
    else:
        wait_for_reader(database, database.name, timeout=timeout)


def wait_for_reader(database: Database, slot: str, *, timeout: float = 10) -> None:
    """Return when later commits are read from the slot.

    A slot that is being created is active too; it has a position when it is complete.
    """
    query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND confirmed_flush_lsn IS NOT NULL"
    wait_until(lambda: database.fetch(query, slot), what="the listener to read", timeout=timeout)


def wait_for_replica(database: MySQLDatabase, name: str, *, timeout: float = 10) -> None:
    """Return when the listener with this CDC_NAME reads later commits.

    The server may still show an earlier listener's connection: the current one is younger than the lock that it holds.
    """

    def reads() -> bool:
        ((session,),) = database.fetch("SELECT IS_USED_LOCK(%s)", lock_name(name))
        commands = {row[0]: str(row[4]) for row in database.fetch("SHOW PROCESSLIST")}
        return session is not None and any(
            command.startswith("Binlog Dump") and number > session for number, command in commands.items()
        )

    wait_until(reads, what="the listener to read", timeout=timeout)


@contextmanager
def running(listener: Listener, database: Database | MySQLDatabase) -> Iterator[None]:
    """Run it with the database's name."""
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        wait_for_listener(database)
        yield
    finally:
        listener.stop()
        thread.join(at_most(10))
    assert not thread.is_alive()
