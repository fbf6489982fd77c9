"""Whether the server still has what comes after a checkpoint, and where to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from listener.monitor import Gap, SourceLost
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.gtid import MariaDBGTIDs, MySQLGTIDs
from listener.mysql.position import BinlogPosition
from listener.mysql.server import LogFile, Server

__all__ = ["beyond_gap", "find_gap", "reachable"]

_RESET: Final = "The log was reset, or the server was restored from an earlier state"


def reachable(after: BinlogPosition, server: Server) -> BinlogPosition:
    """Return the checkpoint in the server's terms: by file where the server has no GTIDs any more."""
    return after if server.has_gtids else replace(after, gtids=None, gtid="", published=None)


def find_gap(
    server: Server,
    after: BinlogPosition,
    *,
    files: Sequence[LogFile],
    oldest: BinlogPosition,
    current: BinlogPosition,
    born: int,
) -> Gap | None:
    """Return what lies between the checkpoint and what the server still has.

    `oldest` and `current` are the start and the end of its log, `born` is when the checkpoint's file was begun.
    Raises SourceLost where a replica, after a failover perhaps, has not come as far as the checkpoint yet.
    """
    if after.born and born and after.born != born:
        return _gap(
            f"{_RESET}: {after.file} is not the file that the checkpoint {after.file}:{after.offset} was in."
        )
    if after.gtids is None or not server.has_gtids:
        return _gap_in_files(server, after, files)
    ahead = _ahead(after, current, mariadb=server.is_mariadb)
    if ahead and server.variable("read_only") == "ON":
        raise SourceLost(f"The replica has not come as far as the checkpoint yet: {ahead}.")
    if ahead:
        return _gap(f"The checkpoint has transactions that the server does not have: {ahead}. {_RESET}.")
    if _is_reset(server, after, files, current):
        return _gap(
            f"{_RESET}: the checkpoint is at {after.file}:{after.offset}, "
            f"and the log ends at {current.file}:{current.offset}."
        )
    missing = _missing(after, oldest, mariadb=server.is_mariadb)
    if missing:
        return _gap(
            f"The server has purged transactions that were never published: {missing}. "
            f"Its oldest log is {oldest.file}."
        )
    return None


def beyond_gap(server: Server, after: BinlogPosition, oldest: BinlogPosition) -> BinlogPosition:
    """Return where to go on when the gap is accepted: with the oldest that the server has and we have not."""
    if after.gtids is None or oldest.gtids is None or not server.has_gtids:
        return oldest
    if server.is_mariadb:
        ahead = MariaDBGTIDs(oldest.gtids).domains_beyond(MariaDBGTIDs(after.gtids))
        if not ahead:
            return oldest
        merged = MariaDBGTIDs(after.gtids)
        for gtid in ahead:
            merged.add(gtid)
        return replace(oldest, gtids=str(merged))
    if MySQLGTIDs(oldest.gtids).minus(MySQLGTIDs(after.gtids)).size():
        return replace(oldest, gtids=str(MySQLGTIDs(oldest.gtids).union(MySQLGTIDs(after.gtids))))
    return oldest


def _gap_in_files(server: Server, after: BinlogPosition, files: Sequence[LogFile]) -> Gap | None:
    if after.server != server.name:
        return _gap(
            f"The checkpoint {after.file}:{after.offset} is of another server, {after.server}, and without GTIDs "
            "its place in this one's log is not known."
        )
    place = after.restart or f"{after.file}:{after.offset}"
    name, _, offset = place.rpartition(":")
    sizes = {file.name: file.size for file in files}
    if name in sizes and int(offset) <= sizes[name]:
        return None
    oldest, newest = files[0].name, files[-1].name
    if after.file_number < BinlogPosition(file=oldest, offset=4).file_number:
        return _gap(
            f"The server has purged the logs from {place} up to {oldest}: what was committed there is missing."
        )
    return _gap(f"The checkpoint {place} lies beyond the end of the log, {newest}. {_RESET}.")


def _ahead(after: BinlogPosition, current: BinlogPosition, *, mariadb: bool) -> str:
    """Return which published transactions the server does not have."""
    done, known = after.published or after.gtids or "", current.gtids or ""
    if mariadb:
        return ",".join(MariaDBGTIDs(done).domains_beyond(MariaDBGTIDs(known)))
    return str(MySQLGTIDs(done).minus(MySQLGTIDs(known)))


def _missing(after: BinlogPosition, oldest: BinlogPosition, *, mariadb: bool) -> str:
    """Return which transactions the server has purged that were not published."""
    done, purged = after.gtids or "", oldest.gtids or ""
    if mariadb:
        ahead = MariaDBGTIDs(purged).domains_beyond(MariaDBGTIDs(done))
        return f"those after {done or 'the first'}, up to {','.join(ahead)}" if ahead else ""
    return str(MySQLGTIDs(purged).minus(MySQLGTIDs(done)))


def _is_reset(
    server: Server, after: BinlogPosition, files: Sequence[LogFile], current: BinlogPosition
) -> bool:
    """Tell whether the server's files have started anew: then equal GTIDs are different transactions."""
    if after.server != server.name or not after.file:
        return False
    if after.file_number > current.file_number:
        return True
    sizes = {file.name: file.size for file in files}
    return after.file in sizes and after.offset > sizes[after.file]


def _gap(message: str) -> Gap:
    return Gap(message, hint=ACCEPT_GAP)
