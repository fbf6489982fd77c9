"""The listener's state according to PostgreSQL: for `status` and the lag alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Final

from cdc_tasks.routing.router import Route
from listener.core.findings import Finding, State
from listener.core.source import Saved
from listener.core.source_status import Reader, SourceStatus
from listener.postgres.client.connection import Connection, connect, fetch_value
from listener.postgres.client.slot import Slot, read_current, read_slot
from listener.postgres.client.timeline import is_standby
from listener.postgres.codec.decoder import WALPosition
from listener.postgres.gaps import find_position_gap
from listener.postgres.log.position import format_lsn
from listener.postgres.tables.checkpoint_notes import Notes, parse_notes
from listener.postgres.tables.sync import TableSync
from listener.postgres.tables.table_findings import find_refused

__all__ = ["PostgresGauge", "read_postgres_status"]

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
    """Return the positions of the server and its slot. Raise SourceError, SourceLostError.

    The `publication` is compared with what the routes need now. While the listener runs, someone may recreate a table,
    remove it from the publication, or add partitions that do not fit. `notes` are those stored with the
    checkpoint, if that is known.
    """
    with closing(PostgresGauge(url, slot_name)) as gauge:
        return gauge.read_with_tables(checkpoint, publication=publication, routes=routes, notes=notes)


def _with_tables(
    connection: Connection,
    url: str,
    slot_name: str,
    checkpoint: str | None,
    *,
    publication: str | None,
    routes: Sequence[Route],
    notes: str | None,
) -> SourceStatus:
    noted = parse_notes(notes)
    standby = (_STANDBY,) if is_standby(connection) else ()
    slot = read_slot(connection, slot_name)
    if slot is None:
        return _without_slot(slot_name, read_current(connection), checkpoint, standby)
    lag = _lag(connection, slot, checkpoint)
    reader, detail = _reader(slot)
    unseen: tuple[str, ...] = ()
    problems: tuple[str, ...] = standby
    if reader is Reader.RUNNING and (publication is not None or slot.plugin == "wal2json"):
        name = None if slot.plugin == "wal2json" else publication
        unseen, problems = _find_in_tables(connection, TableSync(publication=name, routes=routes), noted)
    if checkpoint and (gap := find_position_gap(url, slot, Saved(checkpoint))):
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


class PostgresGauge:
    """Reads the positions of the server and its slot, in one open session."""

    def __init__(self, url: str, slot_name: str) -> None:
        self._url = url
        self._slot_name = slot_name
        self._connection: Connection | None = None

    def read(self, checkpoint: str | None) -> SourceStatus:
        """Return the positions, without checking the tables.

        Raise SourceError, SourceLostError; then the next read reconnects.
        """
        return self._asked(lambda connection: self._read(connection, checkpoint))

    def read_with_tables(
        self,
        checkpoint: str | None,
        *,
        publication: str | None = None,
        routes: Sequence[Route] = (),
        notes: str | None = None,
    ) -> SourceStatus:
        """Return the same as `read_postgres_status`; raise what `read` raises."""
        given: Any = {"publication": publication, "routes": routes, "notes": notes}
        return self._asked(
            lambda connection: _with_tables(connection, self._url, self._slot_name, checkpoint, **given)
        )

    def _asked(self, read: Callable[[Connection], SourceStatus]) -> SourceStatus:
        try:
            return read(self._connection or self._connect())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session; the next read opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> Connection:
        self._connection = connect(self._url)
        return self._connection

    def _read(self, connection: Connection, checkpoint: str | None) -> SourceStatus:
        slot = read_slot(connection, self._slot_name)
        if slot is None:
            return _without_slot(self._slot_name, read_current(connection), checkpoint, ())
        reader, detail = _reader(slot)
        return SourceStatus(
            reader=reader,
            detail=detail,
            current=slot.current_lsn,
            acknowledged=slot.confirmed_flush_lsn,
            lag_bytes=_lag(connection, slot, checkpoint),
            retained_bytes=slot.retained_bytes,
            safe_bytes=slot.safe_bytes,
        )


def _lag(connection: Connection, slot: Slot, checkpoint: str | None) -> int | None:
    """Return the bytes of unpublished log."""
    if checkpoint is None:
        return slot.unconfirmed_bytes
    published = format_lsn(WALPosition.parse(checkpoint).commit_lsn + 1)
    # The acknowledged part is published too, and may end a little later: after the last commit.
    lag: int | None = fetch_value(connection, _LAG, [slot.current_lsn, published, slot.confirmed_flush_lsn])
    return lag


def _find_in_tables(
    connection: Connection, sync: TableSync, notes: Notes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tables missing in the publication, and the problems of the routes' tables."""
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
    return Reader.NONE, f"slot {slot.name}, no reader{since}"
