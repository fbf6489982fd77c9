"""Which transactions a session sees that begins now: by the server's snapshots."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Final, NamedTuple, Self

from cdc_tasks.errors import CDCError
from listener.core.source import SourceLostError
from listener.postgres.client.connection import Connection, fetch_value
from listener.postgres.client.errors import TooManyConnectionsError

__all__ = ["Snapshot", "Visibility"]

_SNAPSHOT: Final = "SELECT pg_catalog.pg_current_snapshot()::text"
_XIDS: Final = 1 << 32  # the log's xids have 32 bits, a snapshot's 64
_HALF: Final = 1 << 31
_KEPT: Final = 60.0  # seconds: no server uses up half of the xids in that time


class Snapshot(NamedTuple):
    """Which transactions have ended, as `pg_snapshot` says it; all numbers have 64 bits."""

    xmin: int  # all before it have ended
    xmax: int  # it and all later ones have not
    xip: frozenset[int]  # those between that have not

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
    """Asks the server in a session of its own, which is renewed by another thread."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """`connect` opens an ordinary session on the server whose log is read."""
        self._connect = connect
        self._lock = Lock()  # of the session
        self._session: Connection | None = None
        self._is_closed = False
        self._snapshot = Snapshot(0, 0, frozenset())
        self._taken_at = float("-inf")

    def shows(self, xid: int) -> bool:
        """Return whether a session that begins now sees the committed transaction `xid`, of 32 bits.

        It asks the server only if the last snapshot does not show it. Raises SourceError, SourceLostError.
        """
        if self._snapshot.shows(xid) and monotonic() - self._taken_at < _KEPT:
            return True
        taken_at = monotonic()
        self._snapshot, self._taken_at = Snapshot.parse(self._ask()), taken_at
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
            self._replace(None)  # the next look gets the same error
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
        if old is not None:
            old.close()

    def _ask(self) -> str:
        with self._lock:
            if self._session is not None:
                with suppress(SourceLostError):  # somebody ended the session
                    return str(fetch_value(self._session, _SNAPSHOT))
                self._session.close()
            self._session = self._connect()
            return str(fetch_value(self._session, _SNAPSHOT))
