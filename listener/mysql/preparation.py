"""What has to be right on the server before we read from it, and where to begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from listener.mysql.connection import Connection
from listener.mysql.gaps import beyond_gap, find_gap, reachable
from listener.mysql.position import BinlogPosition
from listener.mysql.server import LogFile, Server, log_files, start_of

__all__ = ["birth_at", "starting_position"]

log = structlog.get_logger()


def starting_position(
    connection: Connection[Any],
    server: Server,
    *,
    after: BinlogPosition | None,
    current: BinlogPosition,
    from_start: bool,
    accept_gap: bool,
    born: Callable[[str], int],
) -> BinlogPosition:
    """Return where to go on: behind the checkpoint, or without one at the end or the start of the log.

    `born` tells when a file of the log was begun. Raises Gap where the server does not have what comes next.
    """
    if after is None:
        start = start_of(connection, server) if from_start else current
        return replace(start, born=born(start.file))
    oldest, files = start_of(connection, server), log_files(connection)
    then = birth_at(server, after, files, born)
    gap = find_gap(server, after, files=files, oldest=oldest, current=current, born=then)
    if gap is None:
        return reachable(replace(after, born=then), server)
    if not accept_gap:
        raise gap
    log.error("gap_accepted", gap=gap.message)
    beyond = beyond_gap(server, after, oldest)
    return replace(beyond, born=born(beyond.file))


def birth_at(
    server: Server, after: BinlogPosition, files: Sequence[LogFile], born: Callable[[str], int]
) -> int:
    """Return when the checkpoint's file was begun, 0 where this server does not have it."""
    is_here = after.server == server.name and any(file.name == after.file for file in files)
    return born(after.file) if is_here else 0
