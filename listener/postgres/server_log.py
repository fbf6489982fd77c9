"""The server's log as it is when we come, and where a checkpoint stands in it.

After a failover the log goes on, on another timeline, from where the new primary left the old one's (manual,
"Continuous Archiving and Point-in-Time Recovery", section "Timelines").
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

import structlog
from psycopg2.extras import LogicalReplicationConnection

from listener.monitor import SourceError
from listener.postgres.change import format_lsn, parse_lsn
from listener.postgres.connection import translated
from listener.postgres.decoder import WALPosition

__all__ = ["ServerLog", "identify", "resume"]

log = structlog.get_logger()

_FIRST: Final = 1  # a timeline that goes without saying


class ServerLog(NamedTuple):
    """Whose log it is, and how far it goes."""

    system: str  # the cluster's system identifier, in hexadecimal
    timeline: int
    end: int

    def named(self, position: WALPosition) -> str:
        """Return the position as a checkpoint has it, after a failover with the timeline: 2@0/16B3748:0."""
        return str(position) if self.timeline == _FIRST else f"{self.timeline}@{position}"


def identify(replication: LogicalReplicationConnection) -> ServerLog:
    """Ask the server (manual, "Streaming Replication Protocol"); raises SourceError, SourceLost."""
    with translated(), replication.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        ((system, timeline, end, _database),) = cursor.fetchall()
    return ServerLog(f"{int(system):x}", int(timeline), parse_lsn(end))


def resume(
    checkpoint: str,
    server: ServerLog,
    connect: Callable[[], LogicalReplicationConnection],
    *,
    accept_gap: bool,
) -> WALPosition:
    """Return from where to go on after `checkpoint`; raises SourceError where the log does not have that place.

    `connect` opens a session of the replication protocol; it is called after a failover.
    """
    after, timeline = WALPosition.parse(checkpoint), int(checkpoint.rpartition("@")[0] or _FIRST)
    end = server.end + 1
    if timeline != server.timeline:
        with closing(connect()) as replication:
            end = _read_ends(replication, server.timeline).get(timeline, 0)
    if after.commit_lsn < end:
        return after
    if timeline != server.timeline and end:
        return _resume_after_loss(checkpoint, end)
    if accept_gap:
        return WALPosition(0, 0)
    raise SourceError(
        f"The checkpoint {checkpoint} lies beyond the end of the database's log, "
        f"{server.named(WALPosition(server.end, 0))}: the database was restored from an earlier state.",
        hint="Go on from where the replication slot is: python -m listener run --accept-gap",
    )


def _resume_after_loss(checkpoint: str, end: int) -> WALPosition:
    """Go on from where the new primary left the log: what it wrote since, at places that we have been at, is new."""
    log.error(
        "failover_lost_changes",
        checkpoint=checkpoint,
        lost_from=format_lsn(end),
        reason="The new primary had not got all that the old one committed, and tasks of what is lost were published. "
        "Of what the new one commits nothing is missing.",
        cure="Let the listener wait for the standbys: synchronized_standby_slots on the primary.",
    )
    return WALPosition.before(end)


def _read_ends(replication: LogicalReplicationConnection, timeline: int) -> dict[int, int]:
    """Return where each of the timelines ends that this one comes from."""
    if timeline == _FIRST:
        return {}
    with translated(), replication.cursor() as cursor:
        cursor.execute(f"TIMELINE_HISTORY {timeline}")
        ((_file, history),) = cursor.fetchall()
    # Each line has a timeline, its end, and a reason, between tabs; some are empty, or comments.
    text = history if isinstance(history, str) else bytes(history).decode()
    lines = (line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {int(each): parse_lsn(end) for each, end, *_ in lines}
