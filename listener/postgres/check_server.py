"""Whether this server is ready for logical replication, and has room for one more reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdc_tasks.errors import CDCError
from listener.core.findings import Finding, State, finding_from
from listener.core.source import SourceLost
from listener.postgres.client.connection import Connection, connect_replication, fetch, fetch_value
from listener.postgres.client.identifiers import quoted
from listener.postgres.client.slot import Slot
from listener.postgres.client.timeline import is_standby
from listener.postgres.hints import LOGICAL, PRIMARY, REPLICATION, SLOTS, TLS

__all__ = ["check_room", "check_server"]

_OLDEST: Final = 13_00_00


def check_server(connection: Connection) -> Iterator[Finding]:
    """Yield what there is to say about the server and the role."""
    version = fetch_value(connection, "SHOW server_version")
    if connection.info.server_version < _OLDEST:
        cure = "Upgrade the server to PostgreSQL 13 or later."
        yield Finding(what="version", state=State.PROBLEM, found=version, cure=cure)
    else:
        yield Finding(what="version", found=version)
    yield _check_tls(connection)
    if is_standby(connection):
        found = "this server is a standby: the listener waits for a primary"
        yield Finding(what="primary", state=State.PROBLEM, found=found, cure=PRIMARY)
    level = fetch_value(connection, "SHOW wal_level")
    if level == "logical":
        yield Finding(what="wal_level", found=level)
    else:
        yield Finding(what="wal_level", state=State.PROBLEM, found=level, cure=LOGICAL)
    yield from _check_retention(connection)
    yield from _check_role(connection)


def _check_tls(connection: Connection) -> Finding:
    rows = fetch(connection, "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")
    if rows:
        return Finding(what="TLS", found=rows[0][0])
    is_local = fetch_value(
        connection, "SELECT coalesce(inet_client_addr() << '127.0.0.0/8' OR inet_client_addr() = '::1', true)"
    )
    if is_local:
        return Finding(what="TLS", found="none, within this machine")
    return Finding(
        what="TLS",
        state=State.WARNING,
        found="none: passwords and rows travel readable",
        cure=TLS,
    )


def _check_retention(connection: Connection) -> Iterator[Finding]:
    settings = dict(fetch(connection, _RETENTION))
    kept = settings["max_slot_wal_keep_size"]
    yield Finding(
        what="max_slot_wal_keep_size",
        found="unlimited: while the listener is away, the log grows" if kept == "-1" else kept,
    )
    idle = settings.get("idle_replication_slot_timeout", "0")
    if idle != "0":
        yield Finding(
            what="idle_replication_slot_timeout",
            state=State.WARNING,
            found=f"{idle}: a listener that is away for so long loses changes",
            cure="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )


_RETENTION: Final = """
SELECT name, current_setting(name) FROM pg_settings
WHERE name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')
"""

_ROLE: Final = """
SELECT rolname, rolreplication OR rolsuper OR EXISTS (
    SELECT FROM pg_roles AS granted
    WHERE granted.rolname = 'rds_replication' AND pg_has_role(granted.oid, 'MEMBER'))
FROM pg_roles WHERE rolname = current_user
"""


def _check_role(connection: Connection) -> Iterator[Finding]:
    ((role, may_replicate),) = fetch(connection, _ROLE)
    if may_replicate:
        yield Finding(what="REPLICATION", found=f"{role} has it")
    else:
        cure = REPLICATION.format(role=quoted(role))
        yield Finding(what="REPLICATION", state=State.PROBLEM, found=f"{role} does not have it", cure=cure)


def check_room(connection: Connection, url: str, slot: Slot | None) -> Iterator[Finding]:
    """Yield whether a slot and a WAL sender can be had; `slot` is ours, if it is there."""
    ((used, limit),) = fetch(
        connection, "SELECT count(*), current_setting('max_replication_slots')::int FROM pg_replication_slots"
    )
    found = f"{used} of {limit} in use"
    if slot is None and used >= limit:
        yield Finding(what="max_replication_slots", state=State.PROBLEM, found=found, cure=SLOTS)
    else:
        yield Finding(what="max_replication_slots", found=found)
    yield _check_sender(url, slot)


def _check_sender(url: str, slot: Slot | None) -> Finding:
    """Open a session of the replication protocol, and close it: the only way to know that one can be had."""
    try:
        connect_replication(url).close()
    except SourceLost as error:
        running = slot is not None and slot.active_pid is not None
        return finding_from("max_wal_senders", error, State.WARNING if running else State.PROBLEM)
    except CDCError as error:
        return finding_from("max_wal_senders", error)
    return Finding(what="max_wal_senders", found="one is free")
