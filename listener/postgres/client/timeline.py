"""The server's log as it is when we come, and whether it is the one that a checkpoint speaks of.

After a failover the log goes on, on another timeline, from where the new primary left the old one's (manual,
"Continuous Archiving and Point-in-Time Recovery", section "Timelines"). After a restore it goes on, on the same
timeline, at places where other changes stood before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import psycopg2.errors
from psycopg2.extras import LogicalReplicationConnection

from listener.core.source import GapError, SourceLostError
from listener.postgres.client.connection import Connection, fetch_value, translated
from listener.postgres.hints import ACCEPT_GAP, PRIMARY, RESTORED
from listener.postgres.log.position import Era, Eras, LastPublished, WALCheckpoint, format_lsn, parse_lsn

__all__ = ["ResumePoint", "Timeline", "identify", "is_standby", "refuse_standby", "resume"]

_FIRST: Final = 1  # a timeline that comes from none

# After pg_resetwal there is no file; a service may not give it away.
_NO_HISTORY: Final = (
    psycopg2.errors.UndefinedFile,
    psycopg2.errors.InsufficientPrivilege,
    psycopg2.errors.FeatureNotSupported,
)


class Timeline(NamedTuple):
    """Whose log it is, and how far it goes."""

    system: str  # the cluster's system identifier, in hexadecimal
    timeline: int
    end: int
    ends: Mapping[int, int] = {}  # where the timelines end that this one comes from

    def eras(self, generation: int) -> Eras:
        """Return which era each of its places is of, after so many accepted gaps."""
        return Eras(generation, self.timeline, self.ends)

    def end_of(self, timeline: int) -> int:
        """Return where a timeline ends in this log; 0 where it is no part of it."""
        return self.end if timeline == self.timeline else self.ends.get(timeline, 0)


class ResumePoint(NamedTuple):
    """How to go on after a checkpoint."""

    generation: int = 0
    last: LastPublished = LastPublished()  # nothing up to it is published again
    is_expected: bool = False  # the log has to bring that change again, before anything that lies behind it
    lost_from: int = 0  # where the new primary left the log: what was published of the rest is no more


def identify(replication: LogicalReplicationConnection) -> Timeline:
    """Ask the server (manual, "Streaming Replication Protocol"); raises SourceError, SourceLostError."""
    refuse_standby(replication)
    with translated(), replication.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        ((system, timeline, end, _database),) = cursor.fetchall()
    ends = _read_ends(replication, int(timeline))
    return Timeline(f"{int(system):x}", int(timeline), parse_lsn(end), ends)


def is_standby(connection: Connection) -> bool:
    """Return whether the server follows another one; one that does not begins to only in a new start."""
    return bool(fetch_value(connection, "SELECT pg_is_in_recovery()"))


def refuse_standby(connection: Connection) -> None:
    """Raise SourceLostError at a standby: it may be promoted in the middle of what it sends."""
    if is_standby(connection):
        raise SourceLostError("PostgreSQL: this server is a standby.", hint=PRIMARY)


def resume(
    checkpoint: str, server: Timeline, *, slot: str, confirmed: int, advanced_to: int | None = None
) -> ResumePoint:
    """Return how to go on after `checkpoint`.

    `confirmed` is where the slot stands, `told` where we know that we brought it ourselves. Raises GapError where the
    log is not the one that the checkpoint speaks of, or the slot has left behind what was not published.
    """
    saved = WALCheckpoint.parse(checkpoint)
    generation, timeline = saved.era
    last, end = saved.last, server.end_of(timeline)
    if not end or (timeline == server.timeline and last.commit_lsn >= end):
        raise _restored(saved, server)
    if confirmed > max(saved.position.commit_lsn + 1, advanced_to or 0):
        raise _slot_moved(saved, slot, confirmed)
    if last.commit_lsn >= end:
        return ResumePoint(generation, LastPublished(end - 1), lost_from=end)
    return ResumePoint(generation, last, bool(last.committed) and confirmed <= last.commit_lsn)


def _restored(saved: WALCheckpoint, server: Timeline) -> GapError:
    end = f"{Era(saved.era.generation, server.timeline)}{format_lsn(server.end)}"
    return GapError(
        f"The checkpoint {saved.label} lies beyond the end of the database's log, {end}: the database was restored "
        "from an earlier state.",
        hint=RESTORED,
    )


def _slot_moved(saved: WALCheckpoint, slot: str, confirmed: int) -> GapError:
    return GapError(
        f"The replication slot {slot} is at {format_lsn(confirmed)}, and the checkpoint at {saved.label}: what was "
        "committed between the two may not have been published, and cannot be read any more. Either the slot was "
        "dropped and made again, or advanced, by hand; or the broker has lost what it held last.",
        hint=f"{ACCEPT_GAP}\n"
        "If it was the broker: keep its data (redis-cli CONFIG SET appendonly yes), and some log to mend from: "
        "CDC_REPLAY_WINDOW=600",
    )


def _read_ends(replication: LogicalReplicationConnection, timeline: int) -> dict[int, int]:
    """Return where each of the timelines ends that this one comes from."""
    if timeline == _FIRST:
        return {}
    with translated(), replication.cursor() as cursor:
        try:
            cursor.execute(f"TIMELINE_HISTORY {timeline}")
        except _NO_HISTORY:
            return {}
        ((_file, history),) = cursor.fetchall()
    # Each line has a timeline, its end, and a reason, between tabs; some are empty, or comments.
    text = history if isinstance(history, str) else bytes(history).decode()
    lines = (line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {int(each): parse_lsn(end) for each, end, *_ in lines}
