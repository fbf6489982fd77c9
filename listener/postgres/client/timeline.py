"""The server's timeline, and whether a checkpoint belongs to its log.

After a failover the log continues on a new timeline, from the LSN at which the new primary left the old one (manual,
"Continuous Archiving and Point-in-Time Recovery", section "Timelines"). After a restore it continues on the same
timeline, at LSNs that had other changes before.
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

_FIRST: Final = 1  # the only timeline without a predecessor

# After pg_resetwal there is no history file; a hosted service may not allow reading it.
_NO_HISTORY: Final = (
    psycopg2.errors.UndefinedFile,
    psycopg2.errors.InsufficientPrivilege,
    psycopg2.errors.FeatureNotSupported,
)


class Timeline(NamedTuple):
    """A server's timeline with its history."""

    system: str  # the cluster's system identifier, in hexadecimal
    timeline: int  # its number
    end: int  # the LSN at which the log ends now
    ends: Mapping[int, int] = {}  # the LSN at which each earlier timeline of its history ends

    def eras(self, generation: int) -> Eras:
        """Return the eras of the log's positions; `generation` is the number of accepted gaps."""
        return Eras(generation, self.timeline, self.ends)

    def end_of(self, timeline: int) -> int:
        """Return the LSN at which a timeline ends in this log; 0 if it is not part of its history."""
        return self.end if timeline == self.timeline else self.ends.get(timeline, 0)


class ResumePoint(NamedTuple):
    """How to continue after a checkpoint."""

    generation: int = 0
    last: LastPublished = LastPublished()  # nothing up to and with it is published again
    is_expected: bool = False  # the log must contain that change again, before later ones
    lost_from: int = (
        0  # the LSN at which the new primary left the log: later changes are lost, even published ones
    )


def identify(replication: LogicalReplicationConnection) -> Timeline:
    """Return the server's timeline (manual, "Streaming Replication Protocol"). Raise SourceError, SourceLostError."""
    refuse_standby(replication)
    with translated(), replication.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        ((system, timeline, end, _database),) = cursor.fetchall()
    ends = _read_ends(replication, int(timeline))
    return Timeline(f"{int(system):x}", int(timeline), parse_lsn(end), ends)


def is_standby(connection: Connection) -> bool:
    """Return whether the server is a standby; a primary can become one only by a restart."""
    return bool(fetch_value(connection, "SELECT pg_is_in_recovery()"))


def refuse_standby(connection: Connection) -> None:
    """Raise SourceLostError if the server is a standby: it may be promoted while sending."""
    if is_standby(connection):
        raise SourceLostError("PostgreSQL: this server is a standby.", hint=PRIMARY, code="standby")


def resume(
    checkpoint: str, server: Timeline, *, slot: str, confirmed: int, advanced_to: int | None = None
) -> ResumePoint:
    """Return how to continue after `checkpoint`.

    `confirmed` is the slot's position, `advanced_to` the last position to which this listener itself moved it. Raise
    GapError if the checkpoint does not belong to this log, or if the slot has moved past unpublished
    changes.
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
        f"The checkpoint {saved.label} is after the end of the database's log, {end}: the database was restored "
        "from an earlier state.",
        hint=RESTORED,
        code="log_restored",
    )


def _slot_moved(saved: WALCheckpoint, slot: str, confirmed: int) -> GapError:
    return GapError(
        f"The replication slot {slot} is at {format_lsn(confirmed)}, but the checkpoint at {saved.label}: what was "
        "committed between the two may not have been published, and cannot be read any more. Either someone dropped "
        "and created the slot again, or advanced it; or the broker has lost its latest data.",
        hint=f"{ACCEPT_GAP}\n"
        "If it was the broker: make it keep its data (redis-cli CONFIG SET appendonly yes), and make PostgreSQL keep "
        "some log to publish again from: CDC_REPLAY_WINDOW=600",
        code="slot_moved",
    )


def _read_ends(replication: LogicalReplicationConnection, timeline: int) -> dict[int, int]:
    """Return the LSN at which each earlier timeline of this one's history ends."""
    if timeline == _FIRST:
        return {}
    with translated(), replication.cursor() as cursor:
        try:
            cursor.execute(f"TIMELINE_HISTORY {timeline}")
        except _NO_HISTORY:
            return {}
        ((_file, history),) = cursor.fetchall()
    # Each line has a timeline, its end and a reason, separated by tabs. Lines may be empty, or comments.
    text = history if isinstance(history, str) else bytes(history).decode()
    lines = (line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {int(each): parse_lsn(end) for each, end, *_ in lines}
