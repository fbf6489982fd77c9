"""Which transactions of the log a new session sees. This needs no privilege.

`docs/design.md`, "When a change is visible", explains why this is correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from time import monotonic
from typing import Final, Protocol

from listener.core.source import SourceLostError
from listener.mysql.client.connection import Session
from listener.mysql.client.server import Server, prepared_names
from listener.mysql.codec.change import BinlogChange
from listener.mysql.log.gtid import MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["Visibility", "visibility_of"]

_transaction: Final = attrgetter("commit")

_PLACE: Final = (
    "SELECT variable_name, variable_value FROM information_schema.session_status "
    "WHERE variable_name IN ('binlog_snapshot_file', 'binlog_snapshot_position')"
)
# Seconds for which a prepared name counts as the transaction whose commit was read; after that it is another one.
_LONGEST_COMMIT: Final = 5.0


class Visibility(Protocol):
    """Queries the server, at most once per call."""

    def shows(self, changes: Sequence[BinlogChange]) -> bool:
        """Return whether a new session sees the transactions of all these changes (at least one).

        Raises SourceError, SourceLostError.
        """


def visibility_of(
    session: Session, server: Server, second_phases: Callable[[], frozenset[str]]
) -> Visibility:
    """Return the Visibility for this server and session.

    `second_phases` returns the names of the XA transactions whose commit was read last, as `prepared_names` has them.
    """
    return _SeenPlaces(session, second_phases) if server.is_mariadb else _SeenGTIDs(session)


class _SeenPlaces:
    """MariaDB: up to which place of the log all transactions are committed in the storage engines."""

    def __init__(self, session: Session, second_phases: Callable[[], frozenset[str]]) -> None:
        self._session = session
        self._seen: BinlogPosition | None = None
        self._second_phases = second_phases
        self._done: frozenset[str] = frozenset()  # second phases known to be done
        self._waits_until: float | None = None

    def shows(self, changes: Sequence[BinlogChange]) -> bool:
        """See `Visibility.shows`. What is before the last transaction in the log was committed before it."""
        last = changes[-1].commit
        start = BinlogPosition(file=last.file, offset=last.offset)  # a transaction is seen as a whole
        if self._seen is None or not self._seen > start:
            self._seen = self._look(self._seen)
        return self._seen > start and self._are_committed(self._second_phases())

    def _are_committed(self, names: frozenset[str]) -> bool:
        """Return whether the engine has committed these: an XA COMMIT is in the log before that."""
        if names == self._done:
            return True
        now = monotonic()
        if self._waits_until is None:
            self._waits_until = now + _LONGEST_COMMIT
        if now < self._waits_until and names & prepared_names(self._session.fetch("XA RECOVER")):
            return False
        self._done, self._waits_until = names, None
        return True

    def _look(self, before: BinlogPosition | None) -> BinlogPosition:
        status = {str(name).lower(): str(value) for name, value in self._session.fetch(_PLACE)}
        seen = BinlogPosition(
            file=status["binlog_snapshot_file"], offset=int(status["binlog_snapshot_position"])
        )
        if before is not None and seen < before:
            raise SourceLostError("The database's log was reset.")
        return seen


class _SeenGTIDs:
    """MySQL: which GTIDs are executed. Without GTIDs this is unknown, and everything counts as visible."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._shown = ""  # the last set that was there

    def shows(self, changes: Sequence[BinlogChange]) -> bool:
        """See `Visibility.shows`."""
        wanted = _gtids(changes)
        if not wanted or wanted == self._shown:
            return True
        query = "SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed), GTID_SUBSET(%s, @@GLOBAL.gtid_executed)"
        ((is_shown, is_still_shown),) = self._session.fetch(query, [wanted, self._shown])
        if is_shown:
            self._shown = wanted
        elif not is_still_shown:
            raise SourceLostError("The database's log was reset.")
        return bool(is_shown)


def _gtids(changes: Sequence[BinlogChange]) -> str:
    """Return the GTIDs of the changes' transactions."""
    found = MySQLGTIDs()
    for transaction in dict.fromkeys(map(_transaction, changes)):
        if transaction.gtid:
            found.add(transaction.gtid)
    return str(found)
