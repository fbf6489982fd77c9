"""What has to be right, or be made, on the server before we read from it: tables, publication, slot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from listener.findings import Finding, raise_problems
from listener.monitor import Gap, Saved, SourceError, SourceLost
from listener.postgres.catalogue import read_names, read_tables
from listener.postgres.change import parse_lsn
from listener.postgres.connection import Connection, connect_replication
from listener.postgres.cures import ACCEPT_GAP
from listener.postgres.publication import ensure_publication, plan_publication, read_publication
from listener.postgres.server_log import identify, resume
from listener.postgres.slot import Slot, gap_of, read_current, unpublished_from
from listener.postgres.table_findings import find_in_tables
from listener.postgres.watched import Watched, watched_tables
from listener.router import Route, RouteIndex

__all__ = ["find_gap", "find_wrong_place", "look_at_tables", "prepare_publication"]


def find_gap(
    connection: Connection, slot: Slot | None, *, name: str, publication: str | None, saved: Saved | None
) -> Gap | None:
    """Return the gap between what was published and what the server still has for us.

    `slot` is what the server has under `name`; `publication` is None for a plugin that needs none;
    `saved` is `Monitor.open`'s.
    """
    if slot is None:
        return _slot_is_gone(name, saved, read_current(connection)) if saved else None
    if lost := gap_of(slot, saved):
        return lost
    if publication is not None and read_publication(connection, publication) is None:
        # What is older than the publication is skipped without a word by version 18, and stops those before.
        return Gap(
            f"The publication {publication} is gone. What was committed after {unpublished_from(saved, slot)} "
            f"and before it is made again (now: {slot.current_lsn}) cannot be read.",
            hint=ACCEPT_GAP,
        )
    return None


def _slot_is_gone(name: str, saved: Saved, current: str) -> Gap:
    return Gap(
        f"The replication slot {name} is gone: what was committed after {unpublished_from(saved, None)} and before it "
        f"is made again (now: {current}) cannot be read.",
        hint=f"If this is a new listener, give it a CDC_NAME of its own. {ACCEPT_GAP}",
    )


def find_wrong_place(url: str, slot: Slot, saved: Saved | None) -> Gap | None:
    """Return the gap of a slot, or of a log, that is not where the checkpoint says.

    None also while somebody reads, and where it cannot be known: what keeps us from asking is told elsewhere.
    """
    if saved is None or slot.active_pid or slot.confirmed_flush_lsn is None or slot.is_lost:
        return None
    try:
        with closing(connect_replication(url)) as replication:
            server = identify(replication)
        resume(saved.position, server, slot=slot.name, confirmed=parse_lsn(slot.confirmed_flush_lsn))
    except Gap as gap:
        return gap
    except (SourceError, SourceLost, ValueError):  # ValueError: the checkpoint is one of MySQL
        return None
    return None


def prepare_publication(connection: Connection, name: str | None, routes: Sequence[Route]) -> None:
    """Make the publication what the routes need, once the tables are what they have to be.

    Without a name only the tables are looked at: wal2json needs no publication, but it too leaves out changes
    of rows that have no key. To be called before the slot is made, and not while another listener reads, which
    relies on the publication as it is.

    Raises SourceError with all that is wrong, SourceLost where a lock could not be had soon.
    """
    findings, watched = look_at_tables(connection, routes)
    raise_problems(findings)
    if name is not None:
        ensure_publication(connection, name, plan_publication(watched, connection.info.server_version))


def look_at_tables(
    connection: Connection, routes: Sequence[Route]
) -> tuple[list[Finding], tuple[Watched, ...]]:
    """Return what there is to say about the routes' tables, and those that are to be watched."""
    known = read_names(connection)
    index = RouteIndex(routes)
    oids = [oid for oid, name in known.items() if index.watching(*name)]
    tables = read_tables(connection, oids)
    version = connection.info.server_version
    return list(find_in_tables(routes, tables, known.values(), version)), watched_tables(routes, tables)
