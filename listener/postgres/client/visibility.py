"""Which transactions a new session sees, from the server's snapshots."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, Final, NamedTuple, Self

from cdc_tasks.errors import CDCError
from listener.core.source import SourceLostError
from listener.postgres.client.connection import Connection, translated
from listener.postgres.client.errors import TooManyConnectionsError

__all__ = ["Snapshot", "Visibility"]

_SNAPSHOT: Final = "SELECT pg_current_snapshot()"  # psycopg2 returns its text
_XIDS: Final = 1 << 32  # the log's xids have 32 bits, a snapshot's 64
_MASK, _HALF = _XIDS - 1, 1 << 31
_KEPT: Final = 60.0  # seconds: no server uses half of the xids in that time


class Snapshot(NamedTuple):
    """Which transactions have ended, in the format of `pg_snapshot`; all numbers have 64 bits."""

    xmin: int  # all earlier ones have ended
    xmax: int  # it and all later ones have not ended
    xip: frozenset[int]  # those between that have not ended

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `xmin:xmax:xip,xip,…`."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, xip.split(","))) if xip else frozenset())

    def shows(self, xid: int) -> bool:
        """Return whether a session with this snapshot sees the committed transaction.

        `xid` has 32 bits, as in the log. It is less than 2³¹ from `xmax`: the server wraps around no earlier.
        """
        before_xmax = (self.xmax - xid) % _XIDS
        if not 0 < before_xmax < _HALF:
            return False
        full = self.xmax - before_xmax
        return full < self.xmin or full not in self.xip


class Visibility:
    """Queries the server in its own session, which another thread renews."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """`connect` opens an ordinary session on the server whose log is read."""
        self._connect = connect
        self._lock = Lock()  # of the session
        self._session: Connection | None = None
        self._cursor: Any = None  # of the session: a new one for each query would take as long as the query
        self._is_closed = False
        self._snapshot = Snapshot(0, 0, frozenset())
        self._oldest = 0  # `xmin` of the snapshot
        self._kept_until = float("-inf")

    def shows(self, xid: int) -> bool:
        """Return whether a new session sees the committed transaction `xid` (32 bits).

        Queries the server only if the last snapshot does not show it. Raise SourceError, SourceLostError.
        """
        now = monotonic()
        if now < self._kept_until and (0 < (self._oldest - xid) & _MASK < _HALF or self._snapshot.shows(xid)):
            return True
        self._snapshot = Snapshot.parse(self._ask())
        self._oldest, self._kept_until = self._snapshot.xmin, now + _KEPT
        return self._snapshot.shows(xid)

    def renew(self) -> None:
        """Use a new session from now on: a server that waits for the old ones to end can then shut down.

        If the server has no room for another session, the old one stays. Raises nothing.
        """
        try:
            session = self._connect()
        except TooManyConnectionsError:
            return
        except CDCError:
            self._replace(None)  # the next query gets the same error
        else:
            self._replace(session)

    def close(self) -> None:
        """Close the session; safe to call twice."""
        self._is_closed = True
        self._replace(None)

    def _replace(self, session: Connection | None) -> None:
        with self._lock:
            if self._is_closed and session is not None:
                session.close()
                return
            old, self._session = self._session, session
            self._cursor = None
        if old is not None:
            old.close()

    def _ask(self) -> str:
        with self._lock:
            if self._session is not None:
                with suppress(SourceLostError):  # someone ended the session
                    return self._fetch(self._session)
                self._session.close()
            self._session, self._cursor = self._connect(), None
            return self._fetch(self._session)

    def _fetch(self, session: Connection) -> str:
        with translated(session):
            if self._cursor is None:
                self._cursor = session.cursor()
            self._cursor.execute(_SNAPSHOT)
            (text,) = self._cursor.fetchone()
        return str(text)
