"""Checks that this PostgreSQL is ready: finds in advance everything that could prevent the listener from running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final

from psycopg2.sql import Literal

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from cdc_tasks.words import counted
from listener.core.findings import Finding, State, finding_from
from listener.core.source import Saved, SourceLostError
from listener.postgres.backfill.table_key import find_in_reads
from listener.postgres.client.connection import (
    Connection,
    connect,
    connect_replication,
    execute,
    fetch,
    fetch_value,
)
from listener.postgres.client.diagnosis import explain
from listener.postgres.client.host import find_host, finding_in_words_of
from listener.postgres.client.slot import (
    Slot,
    check_slot,
    open_transactions,
    prepared_transactions,
    read_slot,
)
from listener.postgres.client.timeline import is_standby
from listener.postgres.gaps import find_gap, find_position_gap, published_lsn
from listener.postgres.hints import ACCEPT_GAP, LOGICAL, PRIMARY, REPLICATION, SLOTS, TLS, quoted
from listener.postgres.log.position import format_lsn
from listener.postgres.tables.catalogue import TableName
from listener.postgres.tables.checkpoint_notes import Notes, parse_notes
from listener.postgres.tables.publication import statements_for
from listener.postgres.tables.reconciliation import Survey, find_renamed
from listener.postgres.tables.selection import SelectedTable
from listener.postgres.tables.sync import TableSync, describe_renamed, gap_of_tables, gap_start
from listener.postgres.tables.table_findings import find_refused

__all__ = ["Requirements", "check_capacity", "check_postgres", "check_server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """The listener's requirements of the server."""

    slot: str
    publication: str
    plugin: str
    failover: bool
    routes: Sequence[Route]
    lag_alarm: int  # bytes of log kept for the slot that cause a warning
    saved: Saved | None = None  # what was published before
    column_lists: bool = False

    @property
    def sync(self) -> TableSync:
        publication = self.publication if self.plugin == "pgoutput" else None
        return TableSync(publication=publication, routes=self.routes, column_lists=self.column_lists)


def check_postgres(url: str, wanted: Requirements) -> Iterator[Finding]:
    """Yield all findings, problems or not, with hints for the server's host. Never raise CDCError."""
    try:
        with closing(connect(url)) as connection:
            yield Finding(what="connection", code="connection", found=_address(connection))
            host = find_host(connection)
            if host is not None:
                yield Finding(what="host", code="host", found=host.name)
            for each in _check(connection, url, wanted):
                yield finding_in_words_of(host, each)
    except CDCError as error:
        yield finding_from("connection", error)


def _check(connection: Connection, url: str, wanted: Requirements) -> Iterator[Finding]:
    slot = read_slot(connection, wanted.slot)
    yield from check_server(connection)
    if is_standby(connection):
        return  # the rest can only be checked on the primary
    yield from check_capacity(connection, url, slot)
    yield from _check_slot(connection, wanted, slot)
    yield from _check_position(url, wanted, slot)
    yield from _check_plugin(connection, wanted, slot, url)
    notes = parse_notes(wanted.saved.notes if wanted.saved else None)
    findings, survey = wanted.sync.survey(connection, notes)
    yield from findings
    yield from find_refused(survey.selected)
    yield from find_in_reads(connection, _read_tables(survey))
    if wanted.plugin == "pgoutput" and not any(each.state is State.PROBLEM for each in findings):
        yield _check_publication(connection, wanted, survey)
        yield from _check_partitions(wanted.publication, survey.selected, connection.info.server_version)
    if slot is not None and not slot.is_lost:
        yield from _check_gaps(connection, wanted, notes, survey)


def _address(connection: Connection) -> str:
    info = connection.info
    return f"{info.user} at {info.host}:{info.port}/{info.dbname}"


def _check_slot(connection: Connection, wanted: Requirements, slot: Slot | None) -> Iterator[Finding]:
    what = f"slot {wanted.slot}"
    publication = wanted.publication if wanted.plugin == "pgoutput" else None
    gap = find_gap(connection, slot, name=wanted.slot, publication=publication, saved=wanted.saved)
    if gap:
        yield finding_from(what, gap)
    elif slot is None:
        yield _check_creation(connection, what)
    else:
        yield from _check_found_slot(connection, wanted, slot)


def _check_position(url: str, wanted: Requirements, slot: Slot | None) -> Iterator[Finding]:
    """Yield what prevents the listener from continuing at its checkpoint."""
    if slot and (gap := find_position_gap(url, slot, wanted.saved)):
        yield finding_from("checkpoint", gap)


def _check_creation(connection: Connection, what: str) -> Finding:
    found = "will be created at the first start"
    pids, prepared = open_transactions(connection), prepared_transactions(connection)
    if pids:
        found += f", after the open transactions have ended (pid {', '.join(map(str, pids))})"
    if not prepared:
        return Finding(what=what, code="slot", found=found)
    names = [Literal(name).as_string(connection) for name in prepared]
    found += f", after the prepared transactions have ended: {', '.join(names)}"
    hint = "\n".join(f"COMMIT PREPARED {name};   or: ROLLBACK PREPARED {name};" for name in names)
    return Finding(what=what, state=State.WARNING, code="slot", found=found, hint=hint)


def _check_found_slot(connection: Connection, wanted: Requirements, slot: Slot) -> Iterator[Finding]:
    what = f"slot {slot.name}"
    try:
        check_slot(slot, plugin=wanted.plugin, database=connection.info.dbname)
    except CDCError as error:
        yield finding_from(what, error)
        return
    free = (
        f"a listener reads from it (pid {slot.active_pid})"
        if slot.active_pid
        else "no listener reads from it"
    )
    yield Finding(what=what, code="slot", found=f"{free}; {_megabytes(slot.retained_bytes)} of log kept")
    if slot.wal_status == "unreserved":
        hint = "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();"
        yield Finding(what=what, state=State.WARNING, code="slot_lost", found="about to be lost", hint=hint)
    elif (slot.retained_bytes or 0) > wanted.lag_alarm:
        found = f"{_megabytes(slot.retained_bytes)} of log kept, more than CDC_LAG_ALARM"
        hint = "Check that the listener is running and the broker is available: python -m listener status"
        yield Finding(what=what, state=State.WARNING, code="slot_lag", found=found, hint=hint)


def _megabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e6:,.1f} MB"


def _check_plugin(
    connection: Connection, wanted: Requirements, slot: Slot | None, url: str
) -> Iterator[Finding]:
    """Try the plugin in a temporary slot: servers do not list their output plugins."""
    if wanted.failover and connection.info.server_version < 17_00_00:
        yield Finding(
            what="CDC_SLOT_FAILOVER",
            state=State.PROBLEM,
            code="slot_failover",
            found="needs PostgreSQL 17 or later",
            hint="Take CDC_SLOT_FAILOVER out of the environment.",
        )
    if wanted.plugin == "pgoutput" or slot is not None:
        return
    what = f"plugin {wanted.plugin}"
    try:
        # The server loads the plugin first. A timeout while waiting for open transactions means that it is installed.
        execute(connection, "SET statement_timeout = '2s'")
        fetch(
            connection,
            _TRY_PLUGIN,
            [f"{wanted.slot[:50]}_check_{connection.info.backend_pid}", wanted.plugin],
        )
    except SourceLostError:
        yield Finding(what=what, code="plugin", found="installed")
    except CDCError as error:
        explained = explain(error, partial(connect, url), wanted.slot, plugin=wanted.plugin, streams=False)
        yield finding_from(what, explained)
    else:
        yield Finding(what=what, code="plugin", found="installed")
    finally:
        execute(connection, "RESET statement_timeout")


_TRY_PLUGIN: Final = (
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_create_logical_replication_slot(%s, %s, true)"
)


def _read_tables(survey: Survey) -> list[TableName]:
    """Return the tables of routes that take reads."""
    return [
        each.table.name
        for each in survey.selected
        if any(EventType.READ in route.events for route in each.routes)
    ]


def _check_gaps(
    connection: Connection, wanted: Requirements, notes: Notes, survey: Survey
) -> Iterator[Finding]:
    """Yield the gaps that would stop the next start, and the noted gaps not accepted yet."""
    if wanted.saved is not None:
        position = published_lsn(wanted.saved)
        start = format_lsn(gap_start(notes, survey, position))
        losses = wanted.sync.unproven(connection, notes, survey)
        if gap := gap_of_tables(losses, (), start, format_lsn(survey.end)):
            yield finding_from("gap", gap)
        for each in find_renamed(notes, survey, wanted.routes, position):
            found, hint = describe_renamed(each)
            yield Finding(
                what="gap",
                state=State.PROBLEM,
                code="table_renamed",
                found=found,
                hint=f"{hint}\n{ACCEPT_GAP}",
            )
    for noted in notes.gaps:
        yield Finding(what="gap", state=State.PROBLEM, code="rows_missing", found=str(noted), hint=ACCEPT_GAP)


def _check_publication(connection: Connection, wanted: Requirements, survey: Survey) -> Finding:
    what = f"publication {wanted.publication}"
    found, selected = survey.publication, survey.selected
    plan, needed = (
        wanted.sync.wanted(connection, survey),
        wanted.sync.needed(connection, survey),
    )
    is_well = partial(Finding, what=what, code="publication")
    if found == plan:
        return is_well(found=f"has what the routes need: {counted(len(plan.tables), 'table')}")
    if found is not None and found.suffices_for(plan):
        return is_well(found="has what the routes need, and more")
    obstacle = _obstacle(connection, wanted, selected, exists=found is not None)
    if obstacle is not None and found is not None and found.suffices_for(needed):
        return is_well(found="has what the routes need, with lists of columns")
    if obstacle is None:
        return is_well(found="will be created" if found is None else "will be updated")
    sql = "\n".join(
        f"{statement.as_string(connection)};" for statement in statements_for(wanted.publication, found, plan)
    )
    hint = f"Let the owner of the tables, or a superuser, run:\n{sql}"
    return Finding(what=what, state=State.PROBLEM, code="publication", found=obstacle, hint=hint)


def _check_partitions(publication: str, selected: Sequence[SelectedTable], version: int) -> Iterator[Finding]:
    """Before version 15 pgoutput caches the name under which a table is published until the publication changes."""
    tables = [".".join(each.table.name) for each in selected if each.table.is_partitioned]
    if tables and version < 15_00_00:
        found = (
            f"PostgreSQL before 15 overlooks a partition of {', '.join(tables)} that is attached or detached"
        )
        change = f"ALTER PUBLICATION {quoted(publication)} SET (publish_via_partition_root = true);"
        hint = f"End the transaction that attaches or detaches it with: {change}"
        yield Finding(
            what="partitions", state=State.WARNING, code="partitions_overlooked", found=found, hint=hint
        )


_MAY: Final = """
SELECT rolsuper, has_database_privilege(current_database(), 'CREATE'),
  coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = %(publication)s), true),
  ARRAY(SELECT n.nspname || '.' || c.relname
        FROM unnest(%(schemas)s::name[], %(tables)s::name[]) AS wanted (schema, name)
        JOIN pg_namespace n ON n.nspname = wanted.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
        WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1)
FROM pg_roles WHERE rolname = current_user
"""


def _obstacle(
    connection: Connection, wanted: Requirements, selected: Sequence[SelectedTable], *, exists: bool
) -> str | None:
    """Return why the listener's role may not create or change the publication."""
    schemas, tables = [each.table.name[0] for each in selected], [each.table.name[1] for each in selected]
    rows = fetch(connection, _MAY, {"publication": wanted.publication, "schemas": schemas, "tables": tables})
    ((is_superuser, may_create, owns_publication, not_owned),) = rows
    role = connection.info.user
    if is_superuser:
        return None
    if not exists and not may_create:
        return f"does not exist, and {role} may not CREATE in this database"
    if not owns_publication:
        return f"is incomplete, but {role} does not own it"
    if not_owned:
        return f"is not as the routes need it, but {role} does not own {', '.join(not_owned)}"
    return None


# --- The server -----------------------------------------------------------------------------------------

_OLDEST: Final = 13_00_00


def check_server(connection: Connection) -> Iterator[Finding]:
    """Yield the findings about the server and the role."""
    version = fetch_value(connection, "SHOW server_version")
    if connection.info.server_version < _OLDEST:
        hint = "Upgrade the server to PostgreSQL 13 or later."
        yield Finding(what="version", state=State.PROBLEM, code="version", found=version, hint=hint)
    else:
        yield Finding(what="version", code="version", found=version)
    yield _check_tls(connection)
    if is_standby(connection):
        found = "this server is a standby: the listener waits for a primary"
        yield Finding(what="primary", state=State.PROBLEM, code="standby", found=found, hint=PRIMARY)
    level = fetch_value(connection, "SHOW wal_level")
    if level == "logical":
        yield Finding(what="wal_level", code="wal_level", found=level)
    else:
        yield Finding(what="wal_level", state=State.PROBLEM, code="wal_level", found=level, hint=LOGICAL)
    yield from _check_retention(connection)
    yield from _check_role(connection)


def _check_tls(connection: Connection) -> Finding:
    rows = fetch(connection, "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")
    if rows:
        return Finding(what="TLS", code="tls", found=rows[0][0])
    is_local = fetch_value(
        connection, "SELECT coalesce(inet_client_addr() << '127.0.0.0/8' OR inet_client_addr() = '::1', true)"
    )
    if is_local:
        return Finding(what="TLS", code="tls", found="none, within this machine")
    return Finding(
        what="TLS",
        state=State.WARNING,
        code="tls",
        found="none: passwords and rows are sent in clear text",
        hint=TLS,
    )


def _check_retention(connection: Connection) -> Iterator[Finding]:
    settings = dict(fetch(connection, _RETENTION))
    kept = settings["max_slot_wal_keep_size"]
    yield Finding(
        what="max_slot_wal_keep_size",
        code="wal_retention",
        found="unlimited: while the listener is stopped, the log grows" if kept == "-1" else kept,
    )
    idle = settings.get("idle_replication_slot_timeout", "0")
    if idle != "0":
        yield Finding(
            what="idle_replication_slot_timeout",
            state=State.WARNING,
            code="idle_slot_timeout",
            found=f"{idle}: a listener stopped for longer loses changes",
            hint="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
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
    what, code = "REPLICATION", "replication_role"
    if may_replicate:
        yield Finding(what=what, code=code, found=f"{role} has it")
    else:
        hint = REPLICATION.format(role=quoted(role))
        yield Finding(what=what, state=State.PROBLEM, code=code, found=f"{role} does not have it", hint=hint)


def check_capacity(connection: Connection, url: str, slot: Slot | None) -> Iterator[Finding]:
    """Yield whether the server has a free slot and a free WAL sender; `slot` is the listener's, if it exists."""
    ((used, limit),) = fetch(
        connection, "SELECT count(*), current_setting('max_replication_slots')::int FROM pg_replication_slots"
    )
    what, code, found = "max_replication_slots", "replication_slots", f"{used} of {limit} in use"
    if slot is None and used >= limit:
        yield Finding(what=what, state=State.PROBLEM, code=code, found=found, hint=SLOTS)
    else:
        yield Finding(what=what, code=code, found=found)
    yield _check_sender(url, slot)


def _check_sender(url: str, slot: Slot | None) -> Finding:
    """Open a replication session, and close it: the only way to know that a WAL sender is free."""
    try:
        connect_replication(url).close()
    except SourceLostError as error:
        running = slot is not None and slot.active_pid is not None
        return finding_from("max_wal_senders", error, State.WARNING if running else State.PROBLEM)
    except CDCError as error:
        return finding_from("max_wal_senders", error)
    return Finding(what="max_wal_senders", code="wal_senders", found="one is free")
