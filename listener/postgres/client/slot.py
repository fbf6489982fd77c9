"""The replication slot: the server keeps its log for it, and it stores the listener's position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from listener.core.source import GapError, Saved, SourceError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import Connection, execute, fetch, fetch_value
from listener.postgres.hints import ACCEPT_GAP, LOGICAL
from listener.postgres.log.position import WALCheckpoint

__all__ = [
    "Slot",
    "check_slot",
    "create_slot",
    "drop_slot",
    "gap_of",
    "open_transactions",
    "prepared_transactions",
    "read_current",
    "read_slot",
    "unpublished_from",
]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A row of `pg_replication_slots`; columns that the server's version does not have are None."""

    name: str
    kind: str  # logical or physical
    plugin: str | None
    database: str | None
    active_pid: int | None  # of the WAL sender that reads from it
    restart_lsn: str | None  # start of the log that the server keeps
    confirmed_flush_lsn: str | None  # everything committed before it is acknowledged
    wal_status: str | None  # reserved, extended, unreserved or lost
    invalidation_reason: str | None  # version 17
    inactive_since: datetime | None  # version 17
    failover: bool | None  # version 17
    retained_bytes: int | None  # log that the server keeps for it
    unconfirmed_bytes: int | None  # log written since `confirmed_flush_lsn`
    safe_bytes: int | None  # log that can be written before the slot is lost; None: no limit
    current_lsn: str  # the end of the server's log

    @property
    def is_lost(self) -> bool:
        return self.wal_status == "lost" or self.invalidation_reason is not None


_CURRENT: Final = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text
"""
_SLOT: Final = """
SELECT to_jsonb(slot), now.lsn::text,
  pg_wal_lsn_diff(now.lsn, slot.restart_lsn)::bigint,
  pg_wal_lsn_diff(now.lsn, slot.confirmed_flush_lsn)::bigint
FROM pg_replication_slots AS slot, (
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
  ) AS now(lsn)
WHERE slot.slot_name = %s
"""

# Transactions that have written: PostgreSQL creates a slot only when those that were open have ended.
_OPEN_TRANSACTIONS: Final = """
SELECT pid FROM pg_locks
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted AND pid <> pg_backend_pid()
ORDER BY pid
"""
_PREPARED_TRANSACTIONS: Final = "SELECT gid FROM pg_prepared_xacts ORDER BY prepared"


def read_slot(connection: Connection, name: str) -> Slot | None:
    """Return the slot's state now; None if there is no such slot."""
    rows = fetch(connection, _SLOT, [name])
    return _slot(*rows[0]) if rows else None


def read_current(connection: Connection) -> str:
    """Return the end of the server's log."""
    return str(fetch_value(connection, _CURRENT))


def _slot(columns: dict[str, Any], current: str, retained: int | None, unconfirmed: int | None) -> Slot:
    since = columns.get("inactive_since")
    return Slot(
        name=columns["slot_name"],
        kind=columns["slot_type"],
        plugin=columns["plugin"],
        database=columns["database"],
        active_pid=columns["active_pid"],
        restart_lsn=columns["restart_lsn"],
        confirmed_flush_lsn=columns["confirmed_flush_lsn"],
        wal_status=columns.get("wal_status"),
        invalidation_reason=columns.get("invalidation_reason"),
        inactive_since=datetime.fromisoformat(since) if since else None,
        failover=columns.get("failover"),
        retained_bytes=retained,
        unconfirmed_bytes=unconfirmed,
        safe_bytes=columns.get("safe_wal_size"),
        current_lsn=current,
    )


def check_slot(slot: Slot, *, plugin: str, database: str) -> None:
    """Raise SourceError if the listener cannot read from the slot with its name."""
    if slot.kind != "logical":
        problem = f"is {slot.kind}, for a standby server"
    elif slot.database != database:
        problem = f"belongs to the database {slot.database}, not to {database}"
    elif slot.plugin != plugin:
        problem = f"was created for the plugin {slot.plugin}, not for {plugin}"
    else:
        return
    raise SourceError(
        f"The replication slot {slot.name} {problem}.",
        hint="Choose another CDC_NAME or CDC_SLOT. Or, if that slot is not needed:\n"
        f"  SELECT pg_drop_replication_slot('{slot.name}');",
        code="slot",
    )


def gap_of(slot: Slot, saved: Saved | None = None) -> GapError | None:
    """Return the gap of a lost slot, with both its ends; None if the slot is not lost."""
    if not slot.is_lost:
        return None
    reason = slot.invalidation_reason or slot.wal_status
    prevention = _PREVENTION.get(slot.invalidation_reason or "wal_removed")
    return GapError(
        f"The server has invalidated the replication slot {slot.name} ({reason}). What was committed after "
        f"{unpublished_from(saved, slot)} and not published is no longer in its log. A new slot starts after "
        f"{slot.current_lsn}.",
        hint=f"{ACCEPT_GAP}\nTo prevent it from now on: {prevention}" if prevention else ACCEPT_GAP,
        code="slot_lost",
    )


# By the server's reason for invalidating the slot.
_PREVENTION: Final = {
    "wal_removed": "ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();",
    "idle_timeout": "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
    "rows_removed": "on the standbys: ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
    "wal_level_insufficient": LOGICAL,
}


def unpublished_from(saved: Saved | None, slot: Slot | None) -> str:
    """Return the start of a gap for a message: the checkpoint, and the slot's position if there is a slot."""
    confirmed = slot and (slot.confirmed_flush_lsn or slot.restart_lsn)
    if saved is None:
        return confirmed or "its last position"
    try:
        checkpoint = WALCheckpoint.parse(saved.position).label
    except ValueError:  # another source's checkpoint: reported once the source's name is known
        checkpoint = saved.position
    return f"{checkpoint} (the slot: {confirmed})" if confirmed else checkpoint


def create_slot(
    connection: Connection,
    name: str,
    plugin: str,
    *,
    failover: bool = False,
    temporary: bool = False,
    wakeup: Wakeup | None = None,
) -> None:
    """Create the slot: from now on the server keeps its log. A `temporary` slot ends with the session.

    The server waits for the transactions that are open now, which may take long. `wakeup` ends the wait.
    Raise SourceError if the slot cannot be created, SourceLostError after `wakeup`.
    """
    pids, prepared = open_transactions(connection), prepared_transactions(connection)
    if pids or prepared:
        log.warning("slot_waits_for_open_transactions", slot=name, pids=pids, prepared=prepared)
    call, arguments = _creation(connection, name, plugin, failover=failover, temporary=temporary)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="slot") as pool:
        creation = pool.submit(execute, connection, call, arguments)
        while not wait([creation], timeout=0.25).done:
            if wakeup is not None and wakeup.is_set:
                connection.cancel()
    creation.result()
    log.info("slot_created", slot=name, plugin=plugin)


def _creation(
    connection: Connection, name: str, plugin: str, *, failover: bool, temporary: bool
) -> tuple[str, list[Any]]:
    if not failover:
        return "SELECT pg_create_logical_replication_slot(%s, %s, %s)", [name, plugin, temporary]
    if connection.info.server_version < 17_00_00:
        raise SourceError(
            "CDC_SLOT_FAILOVER needs PostgreSQL 17 or later.",
            hint="Take CDC_SLOT_FAILOVER out of the environment.",
            code="slot_failover",
        )
    return "SELECT pg_create_logical_replication_slot(%s, %s, failover => true)", [name, plugin]


def drop_slot(connection: Connection, name: str) -> None:
    """Drop the slot, and with it the server's record of the listener's position. Raise SlotInUseError."""
    fetch_value(connection, "SELECT pg_drop_replication_slot(%s)", [name])
    log.info("slot_dropped", slot=name)


def open_transactions(connection: Connection) -> list[int]:
    """Return the process ids of the open transactions that have written."""
    return [pid for (pid,) in fetch(connection, _OPEN_TRANSACTIONS)]


def prepared_transactions(connection: Connection) -> list[str]:
    """Return the names of the prepared transactions, which only COMMIT PREPARED or ROLLBACK PREPARED ends."""
    return [name for (name,) in fetch(connection, _PREPARED_TRANSACTIONS)]
