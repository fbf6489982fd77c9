"""The start of reading, and the queries before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import structlog

from listener.mysql.client.connection import Connection, fetch_value
from listener.mysql.client.server import Server, current_position, log_files, start_of
from listener.mysql.log.gtid import MariaDBState
from listener.mysql.log.position import BinlogPosition
from listener.mysql.start.gaps import Log, beyond_gap, find_gap, reachable
from listener.mysql.start.log_identity import log_created_at, mark_at, state_before

__all__ = ["read_log", "starting_position"]

log = structlog.get_logger()


def starting_position(
    connection: Connection[Any],
    server: Server,
    *,
    url: str,
    after: BinlogPosition | None,
    current: BinlogPosition,
    from_start: bool,
    accept_gap: bool,
) -> BinlogPosition:
    """Return where to continue: after the checkpoint; without one, at the end or the start of the log.

    Raise GapError if the server does not have the next changes.
    """
    if after is None:
        start = start_of(connection, server) if from_start else current
        return replace(start, created_at=log_created_at(url, start.file))
    found = read_log(connection, server, url, after)
    gap = find_gap(server, after, found)
    if gap is None:
        return reachable(server, after, found)
    if not accept_gap:
        raise gap
    log.error("gap_accepted", gap=gap.message)
    beyond = beyond_gap(server, after, found)
    return replace(beyond, created_at=log_created_at(url, beyond.file) if beyond.server == server.name else 0)


def read_log(connection: Connection[Any], server: Server, url: str, after: BinlogPosition) -> Log:
    """Return the state of the server's log. Raise SourceError, SourceLostError."""
    found = Log(
        files=log_files(connection),
        oldest=start_of(connection, server),
        current=current_position(connection, server),
    )
    if after.server == server.name:
        return replace(
            found,
            created_at=0 if found.size(after.file) is None else log_created_at(url, after.file),
            has_last=_has_last(url, after, found),
        )
    if not server.is_mariadb:
        return found
    state = str(fetch_value(connection, "SELECT @@global.gtid_binlog_state"))
    return replace(found, known=MariaDBState(state), purged=state_before(url, found.oldest.file))


def _has_last(url: str, after: BinlogPosition, found: Log) -> bool:
    place, _, mark = after.last.rpartition(":")
    file, _, offset = place.rpartition(":")
    if found.size(file) is None or int(offset) >> 32:
        return True
    return mark_at(url, file, int(offset)) in {mark, None}
