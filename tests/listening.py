"""A listener that runs in a thread of the test, and when it is there."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.service import Listener
    from tests.conftest import Database

__all__ = ["running", "wait_for_reader"]


def wait_for_reader(database: Database, slot: str, *, timeout: float = 10) -> None:
    """Return when what is committed from now on is read from the slot.

    A slot that is being made is active too; it has a position when it is done.
    """
    query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND confirmed_flush_lsn IS NOT NULL"
    wait_until(lambda: database.fetch(query, slot), what="the listener to read", timeout=timeout)


@contextmanager
def running(listener: Listener, database: Database) -> Iterator[None]:
    """Run it on the slot that has the database's name."""
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        wait_for_reader(database, database.name)
        yield
    finally:
        listener.stop()
        thread.join(10)
    assert not thread.is_alive()
