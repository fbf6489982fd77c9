"""Checks that the server still has the changes after a checkpoint, and finds where reading continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from listener.core.source import GapError, SourceLostError
from listener.mysql.client.server import LogFile, Server
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.log.gtid import MariaDBGTIDs, MariaDBState, MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["Log", "beyond_gap", "find_gap", "reachable"]

_RESET: Final = "The log was reset, or the server was restored from an earlier state"


@dataclass(frozen=True, kw_only=True)
class Log:
    """The state of a server's log: everything that a checkpoint is compared with."""

    files: Sequence[LogFile]  # oldest first
    oldest: BinlogPosition  # its start
    current: BinlogPosition  # its end
    created_at: int = 0  # when the checkpoint's file was created; 0: the server does not have it
    # Whether the checkpoint's last transaction is in its place; True also if the server does not have its file.
    has_last: bool = True
    # Of MariaDB, and a checkpoint of another server: what is in the whole log, and what was before it.
    known: MariaDBState = field(default_factory=MariaDBState)
    purged: MariaDBState = field(default_factory=MariaDBState)

    def size(self, file: str) -> int | None:
        """Return a file's size; None if the server does not have it."""
        return next((each.size for each in self.files if each.name == file), None)


def reachable(server: Server, after: BinlogPosition, log: Log) -> BinlogPosition:
    """Return where to continue if there is no gap: the checkpoint in this server's terms."""
    if not server.has_gtids:  # it may have had them
        return replace(after, created_at=log.created_at, gtids=None, gtid="", published=None)
    if _is_by_place(server, after) and log.size(after.start[0]) is None:  # purged, with nothing new in it
        return replace(log.oldest, gtids=after.gtids, last=after.last, epoch=after.epoch)
    return replace(after, created_at=log.created_at)


def find_gap(server: Server, after: BinlogPosition, log: Log) -> GapError | None:
    """Return the gap between the checkpoint and what the server still has.

    Raise SourceLostError if the server is a replica that has not yet reached the checkpoint, e.g. after a failover.
    """
    if after.server == server.name and (gap := _other_log(after, log)):
        return gap
    if after.gtids is None or not server.has_gtids:
        return _gap_in_files(server, after, log)
    if _is_by_place(server, after):
        return _gap_in_places(after, log)
    return _gap_in_gtids(server, after, log)


def _gap_in_gtids(server: Server, after: BinlogPosition, log: Log) -> GapError | None:
    ahead = _ahead(after, log, mariadb=server.is_mariadb)
    if ahead and server.variable("read_only") == "ON":
        raise SourceLostError(
            f"The replica has not reached the checkpoint yet; it lacks {ahead}.", code="replica_behind"
        )
    if ahead:
        return _log_reset(
            f"The checkpoint has transactions that the server does not have: {ahead}. {_RESET}."
        )
    missing = _missing(after, log.oldest, log.purged) if server.is_mariadb else _not_done(after, log.oldest)
    if missing:
        return _purged(missing, log)
    if after.server == server.name and log.size(after.file) is None:
        return _gap_before_purged(after, log)
    return None


def _gap_before_purged(after: BinlogPosition, log: Log) -> GapError | None:
    """Return the gap if MySQL purged the checkpoint's file, but what it purged lacks published transactions."""
    lost = MySQLGTIDs(after.done or "").minus(MySQLGTIDs(log.oldest.gtids or ""))
    if not lost:
        return None
    return _log_reset(f"{_RESET}: {after.file} is purged, but the purged transactions do not include {lost}.")


def beyond_gap(server: Server, after: BinlogPosition, log: Log) -> BinlogPosition:
    """Return where to continue if the gap is accepted: at the server's oldest transaction that we do not have.

    A new epoch keeps its positions apart from those that were published with the same numbers. What was published but
    is missing on the server is not part of the position: it would never come.
    """
    epoch, oldest = after.epoch + 1, log.oldest
    start = replace(oldest, epoch=epoch)
    if after.gtids is None or oldest.gtids is None or after.server == server.name or not server.has_gtids:
        return start
    if server.is_mariadb:
        missing = _missing(after, oldest, log.purged)
        gtids = str(_domains_beyond(after, oldest, log, missing))
        beyond = BinlogPosition(file=after.file, offset=after.offset, server=after.server, gtids=gtids)
        return replace(beyond, epoch=epoch) if missing else start
    if _not_done(after, oldest):
        published = MySQLGTIDs(after.gtids).minus(MySQLGTIDs(_ahead(after, log, mariadb=False)))
        return replace(start, gtids=str(MySQLGTIDs(oldest.gtids).union(published)))
    return start


def _domains_beyond(
    after: BinlogPosition, oldest: BinlogPosition, log: Log, missing: MariaDBGTIDs
) -> MariaDBGTIDs:
    """Return where to continue in each MariaDB domain: at its oldest transaction if the server lacks published ones.

    What the server has not got must not stay in the position: the next start would take it for a gap again.
    """
    lost = MariaDBGTIDs(_ahead(after, log, mariadb=True))
    kept = (each for each in MariaDBGTIDs(after.gtids or "") if not lost.has_domain_of(each))
    merged = MariaDBGTIDs(",".join(kept))
    for gtid in MariaDBGTIDs(oldest.gtids or ""):
        if gtid in missing or lost.has_domain_of(gtid):
            merged.add(gtid)
    return merged


def _is_by_place(server: Server, after: BinlogPosition) -> bool:
    """Return whether reading continues by file and offset in spite of GTIDs: MariaDB's are not ordered."""
    return server.is_mariadb and after.is_place_on(server.name)


def _other_log(after: BinlogPosition, log: Log) -> GapError | None:
    """Return the gap if the server has other files with the same names: then equal GTIDs are other transactions too."""
    if after.created_at and log.created_at and after.created_at != log.created_at:
        return _log_reset(
            f"{_RESET}: {after.file} is not the file that the checkpoint {after.file}:{after.offset} was in."
        )
    if not log.has_last:
        place = after.last.rpartition(":")[0]
        return _log_reset(f"{_RESET}: the transaction at {place} is not the last published one.")
    size = log.size(after.file)
    if after.file_number > log.current.file_number or (size is not None and after.offset > size):
        end = f"{log.current.file}:{log.current.offset}"
        return _log_reset(
            f"{_RESET}: the checkpoint is at {after.file}:{after.offset}, but the log ends at {end}."
        )
    return None


def _gap_in_files(server: Server, after: BinlogPosition, log: Log) -> GapError | None:
    if after.server != server.name:
        return GapError(
            f"The checkpoint {after.file}:{after.offset} belongs to another server, {after.server}, and without GTIDs "
            "its position in this server's log is unknown.",
            hint=ACCEPT_GAP,
            code="other_server",
        )
    file, offset = after.start
    if log.size(file) is not None:
        return None
    return _log_purged(
        f"The server has purged the logs from {file}:{offset} up to {log.oldest.file}: "
        "what was committed there is missing."
    )


def _gap_in_places(after: BinlogPosition, log: Log) -> GapError | None:
    if log.size(after.start[0]) is not None:
        return None
    done, purged = MariaDBGTIDs(after.gtids or ""), MariaDBGTIDs(log.oldest.gtids or "")
    return None if done == purged else _purged(purged.minus(done) or purged, log, since=done)


def _ahead(after: BinlogPosition, log: Log, *, mariadb: bool) -> str:
    """Return which published transactions the server does not have."""
    done = after.done or ""
    if mariadb:
        return str(log.known.lacks(MariaDBGTIDs(done)))
    return str(MySQLGTIDs(done).minus(MySQLGTIDs(log.current.gtids or "")))


def _missing(after: BinlogPosition, oldest: BinlogPosition, purged: MariaDBState) -> MariaDBGTIDs:
    """Return the last transaction of each domain in which MariaDB has purged some that were not published."""
    done = MariaDBGTIDs(after.gtids or "")
    came_later = purged.lacks(done)
    return MariaDBGTIDs(
        ",".join(
            gtid
            for gtid in MariaDBGTIDs(oldest.gtids or "")
            if gtid not in done and not came_later.has_domain_of(gtid)
        )
    )


def _not_done(after: BinlogPosition, oldest: BinlogPosition) -> MySQLGTIDs:
    return MySQLGTIDs(oldest.gtids or "").minus(MySQLGTIDs(after.gtids or ""))


def _purged(missing: MySQLGTIDs | MariaDBGTIDs, log: Log, *, since: MariaDBGTIDs | None = None) -> GapError:
    text = f"those up to {missing}" if isinstance(missing, MariaDBGTIDs) else str(missing)
    behind = f" after {since}" if since else ""
    return _log_purged(
        f"The server has purged transactions that were never published: {text}{behind}. "
        f"Its oldest log is {log.oldest.file}."
    )


def _log_purged(message: str) -> GapError:
    return GapError(message, hint=ACCEPT_GAP, code="log_purged")


def _log_reset(message: str) -> GapError:
    """Return the error for a log that was reset, or of a server that was restored: the two look the same."""
    return GapError(message, hint=ACCEPT_GAP, code="log_reset")
