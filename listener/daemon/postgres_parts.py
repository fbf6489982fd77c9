"""The parts for PostgreSQL; loaded only if DATABASE_URL names one: a listener on MySQL saves their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from cdc_tasks.routing.router import BinlogRouter
from listener.core.backfill import TablePlan
from listener.core.findings import Finding
from listener.core.source import Monitor
from listener.core.source_status import SourceStatus
from listener.core.tail import Tail
from listener.daemon.settings import ListenerSettings
from listener.daemon.status import SavedPosition
from listener.postgres.backfill.table_key import count_rows, plan_table
from listener.postgres.check import Requirements, check_postgres
from listener.postgres.client.connection import connect
from listener.postgres.monitor import PostgresWALMonitor
from listener.postgres.status import PostgresGauge
from listener.postgres.tail import WALTail

__all__ = [
    "ask_wal_status",
    "check_wal",
    "count_wal_backfill",
    "make_wal_gauge",
    "make_wal_monitor",
    "make_wal_tail",
    "plan_wal_backfill",
    "read_wal_status",
]


def make_wal_monitor(settings: ListenerSettings, router: BinlogRouter, *, accept_gap: bool) -> Monitor:
    """Return the WAL reader, not yet connected."""
    return PostgresWALMonitor(
        settings.database_url.get_secret_value(),
        slot=settings.slot,
        publication=settings.publication,
        routes=router.routes,
        prefixes=router.prefixes,
        plugin=settings.cdc_plugin,
        batch_size=settings.cdc_batch_size,
        failover=settings.cdc_slot_failover,
        replay_window=settings.cdc_replay_window,
        accept_gap=accept_gap,
        column_lists=settings.cdc_column_lists,
    )


def make_wal_tail(
    settings: ListenerSettings,
    router: BinlogRouter,
    selected: BinlogRouter,
    needed: Sequence[tuple[str, str]],
) -> Tail:
    """Return a tail of the log for the tables that `selected` selects, not yet connected; `needed` must be visible."""
    return WALTail(
        settings.database_url.get_secret_value(),
        publication=settings.publication,
        plugin=settings.cdc_plugin,
        routes=selected.routes,
        needed=needed,
        prefixes=router.prefixes,
        most_lag=settings.cdc_lag_alarm,
    )


def check_wal(settings: ListenerSettings, router: BinlogRouter, saved: SavedPosition) -> Iterator[Finding]:
    """Yield the findings about the server and its tables."""
    wanted = Requirements(
        slot=settings.slot,
        publication=settings.publication,
        plugin=settings.cdc_plugin,
        failover=settings.cdc_slot_failover,
        routes=router.routes,
        lag_alarm=settings.cdc_lag_alarm,
        saved=saved.resumed,
        column_lists=settings.cdc_column_lists,
    )
    yield from check_postgres(settings.database_url.get_secret_value(), wanted)


def read_wal_status(
    settings: ListenerSettings, router: BinlogRouter, published: str | None, notes: str | None
) -> SourceStatus:
    """Return what the server reports."""
    with closing(make_wal_gauge(settings)) as gauge:
        return ask_wal_status(gauge, settings, router, published, notes)


def ask_wal_status(
    gauge: PostgresGauge,
    settings: ListenerSettings,
    router: BinlogRouter,
    published: str | None,
    notes: str | None,
) -> SourceStatus:
    """Return the same, in a session that stays open."""
    return gauge.read_with_tables(
        published,
        publication=settings.publication if settings.cdc_plugin == "pgoutput" else None,
        routes=router.routes,
        notes=notes,
    )


def make_wal_gauge(settings: ListenerSettings) -> PostgresGauge:
    """Return a query of the server's position, not yet connected."""
    return PostgresGauge(settings.database_url.get_secret_value(), settings.slot)


def plan_wal_backfill(
    settings: ListenerSettings, schema: str, table: str, where: str | None, chunk: int
) -> TablePlan:
    """Return how a table would be read."""
    publication = settings.publication if settings.cdc_plugin == "pgoutput" else None
    with closing(connect(settings.database_url.get_secret_value())) as connection:
        return plan_table(connection, (schema, table), where, chunk, publication)


def count_wal_backfill(settings: ListenerSettings, schema: str, table: str, where: str | None) -> int:
    """Return how many rows a backfill would find now."""
    with closing(connect(settings.database_url.get_secret_value())) as connection:
        return count_rows(connection, (schema, table), where)
