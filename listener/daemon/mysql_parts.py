"""The parts for MySQL and MariaDB; loaded only if DATABASE_URL names one: their drivers come with an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from cdc_tasks.routing.router import BinlogRouter, Route
from listener.core.backfill import TablePlan
from listener.core.findings import Finding
from listener.core.source import Monitor
from listener.core.source_status import SourceStatus
from listener.core.tail import Tail
from listener.daemon.application import cache_url
from listener.daemon.bookmarked_monitor import BookmarkedMonitor
from listener.daemon.settings import ListenerSettings
from listener.mysql.backfill.readable_table import count_rows, plan_table
from listener.mysql.check import check_mysql
from listener.mysql.client.connection import connect
from listener.mysql.history.binlog_history import BinlogHistory
from listener.mysql.log.position import BinlogPosition
from listener.mysql.monitor import BinlogMonitor, derived_server_id
from listener.mysql.status import BinlogGauge, read_mysql_status
from listener.mysql.tail import BinlogTail
from listener.publish.bookmark import Bookmark

__all__ = [
    "binlog_history",
    "check_binlog",
    "count_binlog_backfill",
    "make_binlog_gauge",
    "make_binlog_monitor",
    "make_binlog_tail",
    "plan_binlog_backfill",
    "read_binlog_status",
]


def make_binlog_monitor(
    settings: ListenerSettings, router: BinlogRouter, *, accept_gap: bool, from_start: bool
) -> Monitor:
    """Return the binlog reader with its bookmark, not yet connected."""
    reader = BinlogMonitor(
        settings.database_url.get_secret_value(),
        name=settings.cdc_name,
        routes=router.routes,
        server_id=settings.cdc_server_id,
        batch_size=settings.cdc_batch_size,
        from_start=from_start,
        accept_gap=accept_gap,
    )
    bookmark = Bookmark(
        cache_url(settings),
        name=settings.cdc_name,
        replay_window=settings.cdc_replay_window,
    )
    return BookmarkedMonitor(reader, bookmark)


def binlog_history(
    settings: ListenerSettings, routes: Sequence[Route], checkpoint: Callable[[], str | None]
) -> BinlogHistory:
    """Return the log as a replay of these routes reads it, not opened yet."""

    def saved() -> BinlogPosition | None:
        text = checkpoint()
        return None if text is None else BinlogPosition.parse(text)

    return BinlogHistory(settings.database_url.get_secret_value(), routes, checkpoint=saved)


def make_binlog_tail(settings: ListenerSettings, selected: BinlogRouter) -> Tail:
    """Return a tail of the log for the tables that `selected` selects, not yet connected."""
    return BinlogTail(settings.database_url.get_secret_value(), routes=selected.routes)


def check_binlog(
    settings: ListenerSettings, router: BinlogRouter, checkpoint: str | None
) -> Iterator[Finding]:
    """Yield the findings about the server and its tables."""
    yield from check_mysql(
        settings.database_url.get_secret_value(),
        name=settings.cdc_name,
        server_id=settings.cdc_server_id or derived_server_id(settings.cdc_name),
        routes=router.routes,
        checkpoint=checkpoint,
        needs_marks=bool(router.accepted),
    )


def read_binlog_status(settings: ListenerSettings, checkpoint: str | None) -> SourceStatus:
    """Return what the server reports."""
    return read_mysql_status(settings.database_url.get_secret_value(), settings.cdc_name, checkpoint)


def make_binlog_gauge(settings: ListenerSettings) -> BinlogGauge:
    """Return a query of the server's position, not yet connected."""
    return BinlogGauge(settings.database_url.get_secret_value(), settings.cdc_name)


def plan_binlog_backfill(
    settings: ListenerSettings, schema: str, table: str, where: str | None, chunk: int
) -> TablePlan:
    """Return how a table would be read. Raise BackfillRefusedError, SourceError, SourceLostError."""
    with closing(connect(settings.database_url.get_secret_value())) as connection:
        return plan_table(connection, (schema, table), where, chunk)


def count_binlog_backfill(settings: ListenerSettings, schema: str, table: str, where: str | None) -> int:
    """Return how many rows a backfill would find now; the server reads all of them."""
    with closing(connect(settings.database_url.get_secret_value())) as connection:
        return count_rows(connection, (schema, table), where)
