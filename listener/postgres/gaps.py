"""Checks that the server still has the changes after a checkpoint: slot, publication, and position in the log."""

from __future__ import annotations

from contextlib import closing

from listener.core.source import GapError, Saved, SourceError, SourceLostError
from listener.postgres.client.connection import Connection, connect_replication
from listener.postgres.client.slot import Slot, gap_of, read_current, unpublished_from
from listener.postgres.client.timeline import identify, resume
from listener.postgres.hints import ACCEPT_GAP
from listener.postgres.log.position import WALPosition, format_lsn, parse_lsn
from listener.postgres.tables.checkpoint_notes import parse_notes
from listener.postgres.tables.publication import gap_of_publication, read_publication

__all__ = ["find_gap", "find_position_gap", "published_lsn"]


def find_gap(
    connection: Connection, slot: Slot | None, *, name: str, publication: str | None, saved: Saved | None
) -> GapError | None:
    """Return the gap between what was published and what the server still has.

    `slot` is the server's slot called `name`; `publication` is None for a plugin that needs none; `saved` is
    `Monitor.open`'s.
    """
    if slot is None:
        return _slot_is_gone(name, saved, read_current(connection)) if saved else None
    if lost := gap_of(slot, saved):
        return lost
    if publication is not None and read_publication(connection, publication) is None:
        # Version 18 skips what is older than the publication without logging it. Earlier versions stop there.
        looked = parse_notes(saved.notes).checked_lsn if saved else 0
        # It may have been dropped before the checkpoint: a listener continues until its next check, and may be killed.
        is_earlier = 0 < looked < published_lsn(saved)
        start = format_lsn(looked) if is_earlier else unpublished_from(saved, slot)
        return gap_of_publication(publication, start, slot.current_lsn)
    return None


def published_lsn(saved: Saved | None) -> int:
    """Return the LSN up to which the log was published; 0 if unknown."""
    try:
        return WALPosition.parse(saved.position).commit_lsn if saved else 0
    except ValueError:
        return 0  # the checkpoint of another kind of database: the publisher reports it


def _slot_is_gone(name: str, saved: Saved, current: str) -> GapError:
    return GapError(
        f"The replication slot {name} no longer exists: what was committed after {unpublished_from(saved, None)} "
        f"and before it is recreated (now: {current}) cannot be read.",
        hint=f"If this is a new listener, give it its own CDC_NAME. {ACCEPT_GAP}",
        code="slot_gone",
    )


def find_position_gap(url: str, slot: Slot, saved: Saved | None) -> GapError | None:
    """Return the gap if the position of the slot, or of the log, does not fit the checkpoint.

    Also return None while a listener reads, and if it cannot be determined: other checks report why.
    """
    if saved is None or slot.active_pid or slot.confirmed_flush_lsn is None or slot.is_lost:
        return None
    try:
        with closing(connect_replication(url)) as replication:
            server = identify(replication)
        resume(saved.position, server, slot=slot.name, confirmed=parse_lsn(slot.confirmed_flush_lsn))
    except GapError as gap:
        return gap
    except (SourceError, SourceLostError, ValueError):  # ValueError: the checkpoint is one of MySQL
        return None
    return None
