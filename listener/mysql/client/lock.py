"""One listener at a time: a named lock on the server, held by a session of its own."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Final

from cdc_tasks.errors import CDCError
from listener.core.source import SourceLostError
from listener.mysql.client.connection import Connection, connect, execute, fetch_value

__all__ = ["ListenerLock", "lock_name"]

_PING_EVERY: Final = 5.0  # seconds
_FREED_AFTER: Final = (
    30  # seconds without a word, e.g. when our machine is gone, until the server frees the lock
)
_LONGEST: Final = 64  # characters in a lock's name


class ListenerLock:
    """Holds the lock from `take` to `close`; a thread keeps the session alive, whatever the rest is doing."""

    def __init__(self, url: str, name: str) -> None:
        """Open the session; `name` is CDC_NAME. Raises SourceError, SourceLostError."""
        self._connection: Connection[Any] = connect(url, read_timeout=20)
        execute(self._connection, "SET SESSION wait_timeout = %s", [_FREED_AFTER])
        self._name = lock_name(name)
        self._closed = threading.Event()
        self._asking = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="listener-lock", daemon=True)
        self.is_lost = False

    def take(self) -> bool:
        """Tell whether we hold the lock now."""
        taken: bool = fetch_value(self._connection, "SELECT GET_LOCK(%s, 0)", [self._name]) == 1
        if taken:
            self._keeper.start()
        return taken

    def check(self) -> None:
        """Raise SourceLostError where the lock is not ours any more."""
        if self.is_lost:
            raise SourceLostError("The session that kept other listeners off was lost.")

    def is_mine(self) -> bool:
        """Ask the server, for a moment at which the keeper cannot know yet; not to be called often."""
        with self._asking:
            return self._ask()

    def close(self) -> None:
        """Free the lock; safe to call twice."""
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
    """Return the lock's name, which is the same for each listener with this CDC_NAME."""
    full = f"cdc-tasks:{name}"
    return full if len(full) <= _LONGEST else f"cdc-tasks:{hashlib.sha256(name.encode()).hexdigest()[:40]}"
