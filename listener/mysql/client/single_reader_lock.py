"""One listener at a time: a named lock on the server, with its own session."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Final

from cdc_tasks.errors import CDCError
from listener.core.source import SourceLostError
from listener.mysql.client.connection import Connection, connect, execute, fetch_value

__all__ = ["ListenerLock", "lock_name"]

_PING_EVERY: Final = 5.0  # seconds
_IDLE_TIMEOUT: Final = 30  # seconds without a ping until the server frees the lock, e.g. of a dead machine
_LONGEST: Final = 64  # characters in a lock's name


class ListenerLock:
    """Holds the lock from `acquire` to `close`; a thread keeps the session alive, even while the listener is busy."""

    def __init__(self, url: str, name: str) -> None:
        """Open the session; `name` is CDC_NAME. Raises SourceError, SourceLostError."""
        self._connection: Connection[Any] = connect(url, read_timeout=20)
        execute(self._connection, "SET SESSION wait_timeout = %s", [_IDLE_TIMEOUT])
        self._name = lock_name(name)
        self._closed = threading.Event()
        self._asking = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="listener-lock", daemon=True)
        self.is_lost = False

    def acquire(self) -> bool:
        """Try to get the lock, without waiting; return whether we have it now."""
        acquired: bool = fetch_value(self._connection, "SELECT GET_LOCK(%s, 0)", [self._name]) == 1
        if acquired:
            self._keeper.start()
        return acquired

    def check(self) -> None:
        """Raise SourceLostError if we have lost the lock."""
        if self.is_lost:
            raise SourceLostError("The session with the listener's lock was lost.", code="lock_lost")

    def is_mine(self) -> bool:
        """Query whether the server currently shows us as the owner of the lock; do not call it often."""
        with self._asking:
            return self._ask()

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        self._closed.set()
        if self._keeper.is_alive():
            self._keeper.join()
        if self._connection.open:
            self._connection.close()

    def _keep(self) -> None:
        while not self._closed.wait(_PING_EVERY):
            if not self.is_mine():
                self.is_lost = True
                return

    def _ask(self) -> bool:
        try:
            query = "SELECT IS_USED_LOCK(%s) = CONNECTION_ID()"
            return bool(fetch_value(self._connection, query, [self._name]))
        except CDCError:
            return False


def lock_name(name: str) -> str:
    """Return the lock's name, which is the same for all listeners with this CDC_NAME."""
    full = f"cdc-tasks:{name}"
    return full if len(full) <= _LONGEST else f"cdc-tasks:{hashlib.sha256(name.encode()).hexdigest()[:40]}"
