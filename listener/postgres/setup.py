"""Prepares the server for one listener: keeps others out and creates what is missing, the publication first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import structlog

from listener.core.source import Saved, SourceError, SourceLostError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import Connection, fetch_value
from listener.postgres.client.diagnosis import explained
from listener.postgres.client.errors import SlotInUseError, sqlstate_of
from listener.postgres.client.slot import Slot, check_slot, create_slot, drop_slot, read_slot
from listener.postgres.gaps import find_gap, published_lsn
from listener.postgres.hints import AFTER_GAP
from listener.postgres.log.position import parse_lsn
from listener.postgres.plugins import PluginName
from listener.postgres.tables.checkpoint_notes import Notes
from listener.postgres.tables.sync import PreparedTables, TableSync

__all__ = ["PreparedServer", "ServerSetup"]

log = structlog.get_logger()

# SQLSTATEs of a race that another listener with the same publication has won: retry.
_LOST_RACES: Final = frozenset({"23505", "42710", "XX000"})  # exists already; tuple concurrently updated


class PreparedServer(NamedTuple):
    """The state when a listener may start to read."""

    tables: PreparedTables
    has_new_slot: bool
    gap_is_accepted: bool  # changes before the new slot are missing, which a person has accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """The server objects of one listener."""

    connect: Callable[[], Connection]  # opens an ordinary session
    slot: str
    plugin: PluginName
    failover: bool
    sync: TableSync
    wakeup: Wakeup  # ends the wait for the slot

    def acquire(self, connection: Connection) -> Slot | None:
        """Return the slot, None if there is none; until the session ends, no other listener prepares the server.

        Raise SlotInUseError if another listener reads, or is about to.
        """
        if not fetch_value(connection, "SELECT pg_try_advisory_lock(%s)", [_lock_of(self.slot)]):
            raise SlotInUseError(f"Another listener is about to read from the slot {self.slot}.")
        slot = read_slot(connection, self.slot)
        if slot and slot.active_pid:
            raise SlotInUseError(f"The server's process {slot.active_pid} reads from the slot {slot.name}.")
        return slot

    def prepare(
        self,
        connection: Connection,
        slot: Slot | None,
        saved: Saved | None,
        notes: Notes,
        *,
        accept_gap: bool,
    ) -> PreparedServer:
        """Create what is missing: first the publication, then the slot.

        `slot` is what `acquire` returned. Raise GapError if changes are missing, unless `accept_gap`.
        """
        gap = find_gap(connection, slot, name=self.slot, publication=self.sync.publication, saved=saved)
        if gap and not accept_gap:
            raise gap
        with _lost_races_retried():
            tables = self._prepare_tables(
                connection, slot, saved, notes, has_gap=bool(gap), accept_gap=accept_gap
            )
        if gap:
            log.error("gap_accepted", gap=gap.message, hint=AFTER_GAP)
        self._prepare_slot(connection, slot, is_void=bool(gap))
        return PreparedServer(tables, has_new_slot=bool(gap) or slot is None, gap_is_accepted=bool(gap))

    def _prepare_tables(
        self,
        connection: Connection,
        slot: Slot | None,
        saved: Saved | None,
        notes: Notes,
        *,
        has_gap: bool,
        accept_gap: bool,
    ) -> PreparedTables:
        """Compare the tables with the notes; an accepted gap covers everything since."""
        # A start without a first checkpoint, or a broker that lost its data.
        is_assumed = saved is None and slot is not None
        if has_gap:
            notes = replace(notes, tables=None)
        elif is_assumed:
            confirmed = parse_lsn((slot and slot.confirmed_flush_lsn) or "0/0")
            notes = self.sync.assumed(connection, confirmed)
        return self.sync.prepare(
            connection,
            notes,
            position=published_lsn(saved),
            accept_gap=accept_gap,
            is_noted=not is_assumed,
        )

    def _prepare_slot(self, connection: Connection, slot: Slot | None, *, is_void: bool) -> None:
        """Create the slot if there is none; drop one that `is_void` first."""
        if slot and not is_void:
            check_slot(slot, plugin=self.plugin, database=connection.info.dbname)
            return
        if slot:
            with explained(self.connect, self.slot, plugin=self.plugin):
                drop_slot(connection, self.slot)
        with _lost_races_retried(), explained(self.connect, self.slot, plugin=self.plugin):
            create_slot(connection, self.slot, self.plugin, failover=self.failover, wakeup=self.wakeup)


def _lock_of(slot: str) -> int:
    """Return the advisory lock that a listener holds while it prepares the server."""
    digest = hashlib.blake2b(f"cdc-tasks {slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@contextmanager
def _lost_races_retried() -> Iterator[None]:
    """Raise SourceLostError, after which the listener retries, if another session has just done the same."""
    try:
        yield
    except SourceError as error:
        if sqlstate_of(error) not in _LOST_RACES:
            raise
        raise SourceLostError(error.message) from error
