"""What has to be right on the server before we read from it, and where to begin."""

from __future__ import annotations

from typing import Any

import structlog

from listener.mysql.connection import Connection
from listener.mysql.gaps import beyond_gap, find_gap, reachable
from listener.mysql.position import BinlogPosition
from listener.mysql.server import Server, log_files, start_of

__all__ = ["starting_position"]

log = structlog.get_logger()


def starting_position(
    connection: Connection[Any],
    server: Server,
    *,
    after: BinlogPosition | None,
    current: BinlogPosition,
    from_start: bool,
    accept_gap: bool,
) -> BinlogPosition:
    """Return where to go on: behind the checkpoint, or without one at the end or the start of the log.

    Raises Gap where the server does not have what comes next.
    """
    if after is None:
        return start_of(connection, server) if from_start else current
    oldest = start_of(connection, server)
    gap = find_gap(server, after, files=log_files(connection), oldest=oldest, current=current)
    if gap is None:
        return reachable(after, server)
    if not accept_gap:
        raise gap
    log.error("gap_accepted", gap=gap.message)
    return beyond_gap(server, after, oldest)
