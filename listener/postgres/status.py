"""What PostgreSQL knows of the listener."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final

from cdc_tasks.routing.router import Route
from listener.core.findings import Finding, State
from listener.core.source import Saved
from listener.core.status import Reader, SourceStatus
from listener.postgres.client.connection import Connection, connect, fetch_value
from listener.postgres.client.slot import Slot, read_current, read_slot
from listener.postgres.client.timeline import is_standby
from listener.postgres.codec.decoder import WALPosition
from listener.postgres.gaps import find_wrong_place
from listener.postgres.log.position import format_lsn
from listener.postgres.tables.findings import find_refused
from listener.postgres.tables.notes import Notes, parse_notes
from listener.postgres.tables.sync import TableSync

__all__ = ["read_postgres_status"]

_STANDBY: Final = "primary: this server is a standby, and no listener reads from it"
_LAG: Final = "SELECT greatest(0, %s::pg_lsn - greatest(%s::pg_lsn, %s::pg_lsn))::bigint"


def read_postgres_status(
    url: str,
    slot_name: str,
    checkpoint: str | None,
    *,
    publication: str | None = None,
    routes: Sequence[Route] = (),
    notes: str | None = None,
) -> SourceStatus:
    """Return how far the server and its slot are; raises SourceError, SourceLostError.

    With a `publication` it is compared with what the routes need now: tables may have been made anew, or taken
    out of it, while the listener runs, or been given partitions that are not as they have to be. `notes` are what
    is kept with the checkpoint, where that is known.
    """
    noted = parse_notes(notes)
    with closing(connect(url)) as connection:
        standby = (_STANDBY,) if is_standby(connection) else ()
        slot = read_slot(connection, slot_name)
        if slot is None:
            return _without_slot(slot_name, read_current(connection), checkpoint, standby)
        lag = slot.unconfirmed_bytes
        if checkpoint is not None:
            published = format_lsn(WALPosition.parse(checkpoint).commit_lsn + 1)
            # What is acknowledged is published too, and may lie a little further: behind the last commit.
            lag = fetch_value(connection, _LAG, [slot.current_lsn, published, slot.confirmed_flush_lsn])
        reader, detail = _reader(slot)
        unseen: tuple[str, ...] = ()
        problems: tuple[str, ...] = standby
        if reader is Reader.RUNNING and (publication is not None or slot.plugin == "wal2json"):
            name = None if slot.plugin == "wal2json" else publication
            unseen, problems = _look_at_tables(connection, TableSync(publication=name, routes=routes), noted)
        if checkpoint and (gap := find_wrong_place(url, slot, Saved(checkpoint))):
            problems = (gap.message,)
    return SourceStatus(
        reader=reader,
        detail=detail,
        current=slot.current_lsn,
        acknowledged=slot.confirmed_flush_lsn,
        lag_bytes=lag,
        retained_bytes=slot.retained_bytes,
        safe_bytes=slot.safe_bytes,
        unseen=unseen,
        problems=problems,
        gaps=tuple(map(str, noted.gaps)),
    )


def _look_at_tables(
    connection: Connection, sync: TableSync, notes: Notes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tables that the publication lacks, and what is wrong with those of the routes."""
    findings, survey = sync.survey(connection, notes)
    lacking = sync.lacking(connection, survey) if sync.publication else ()
    unseen = [".".join(survey.by_oid[oid].table.name) for oid in sorted(lacking)]
    return tuple(unseen), _problems([*findings, *find_refused(survey.selected)])


def _problems(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(f"{each.what}: {each.found}" for each in findings if each.state is State.PROBLEM)


def _without_slot(
    slot_name: str, current: str, checkpoint: str | None, problems: tuple[str, ...]
) -> SourceStatus:
    return SourceStatus(
        reader=Reader.LOST if checkpoint else Reader.NEVER_STARTED,
        detail=f"there is no replication slot {slot_name}" + (" any more" if checkpoint else ""),
        current=current,
        acknowledged=None,
        lag_bytes=None,
        retained_bytes=None,
        safe_bytes=None,
        problems=problems,
    )


def _reader(slot: Slot) -> tuple[Reader, str]:
    if slot.is_lost:
        return Reader.LOST, f"slot {slot.name} is lost: {slot.invalidation_reason or slot.wal_status}"
    if slot.active_pid is not None:
        return Reader.RUNNING, f"slot {slot.name}, read by the server's process {slot.active_pid}"
    since = f" since {slot.inactive_since:%Y-%m-%d %H:%M:%S %Z}" if slot.inactive_since else ""
    return Reader.NONE, f"slot {slot.name}, read by nobody{since}"
