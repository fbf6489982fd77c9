"""Build the listener from its settings: the only module that imports all parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from celery import Celery

from cdc_tasks.errors import CDCError
from cdc_tasks.extras import MissingExtraError, check_extra
from cdc_tasks.routing.router import BinlogRouter, Route
from listener.control.backfills import Backfills, BackfillStore
from listener.control.commands import CommandQueue
from listener.control.control import Control, ControlState
from listener.control.first_load import ExistingTables, offered_in
from listener.control.journal.file import JournalError, journal_path
from listener.control.journal.reader import JournalReader
from listener.control.journal.writer import Journal
from listener.control.recent.noting import InForce
from listener.control.recent.reader import RecentReader
from listener.control.recent.store import RecentStore
from listener.control.recent.writer import RecentChanges
from listener.control.replays import Replays, ReplayStore
from listener.core.backfill import TablePlan
from listener.core.existing_table import ExistingTable
from listener.core.findings import Finding, finding_from
from listener.core.history import History
from listener.core.publisher import BrokerAwayError, Publisher
from listener.core.source import Monitor, SourceError, SourceLostError
from listener.core.source_status import SourceStatus
from listener.core.tail import Tail
from listener.daemon.application import cache_url, celery_app
from listener.daemon.database_url import DatabaseType, home_schema
from listener.daemon.loop import Listener
from listener.daemon.reload import Reloading
from listener.daemon.settings import ListenerSettings
from listener.daemon.status import SavedPosition, Status, ask_saved_position, read_saved_position
from listener.metrics.meter import Meter
from listener.metrics.rates import RateNotes
from listener.publish.bookmark import read_bookmark
from listener.publish.check_broker import check_bookmark, check_broker, check_cache
from listener.publish.commit_wait_note import CommitWaitNote
from listener.publish.kombu.publisher import KombuPublisher
from listener.publish.redis.connection import RedisConnection
from listener.publish.redis.publisher import RedisPublisher
from listener.publish.spans import make_spans

__all__ = [
    "STORE_AWAY",
    "StatusReader",
    "backfill_store",
    "check_everything",
    "checkpoint_store",
    "command_queue",
    "control_state",
    "count_backfill",
    "is_redis",
    "journal_reader",
    "make_listener",
    "make_tail",
    "plan_backfill",
    "read_existing_tables",
    "read_source_status",
    "read_status",
    "recent_reader",
    "replay_histories",
    "replay_store",
]


# The checkpoint is in the broker if that is Redis.
STORE_AWAY: Final = "Start it, or correct CELERY_BROKER_URL (CACHE_URL, if the broker is not Redis)."


def make_listener(
    settings: ListenerSettings,
    router: BinlogRouter,
    *,
    accept_gap: bool,
    from_start: bool = False,
    loads_first: bool = False,
    reloading: Reloading | None = None,
) -> Listener:
    """Return the listener, not yet connected."""
    monitor = _monitor(settings, router, accept_gap=accept_gap, from_start=from_start)
    publisher = _publisher(settings)
    redis = checkpoint_store(settings)
    queue, state = CommandQueue(redis, settings.cdc_name), ControlState(redis, settings.cdc_name)
    backfills = Backfills(
        BackfillStore(redis, settings.cdc_name),
        publisher,
        router.routes,
        monitor.read_chunk,
        is_paused=lambda routes: not set(routes).isdisjoint(state.paused_routes),
    )
    replays = Replays(
        ReplayStore(redis, settings.cdc_name),
        publisher,
        router.routes,
        lambda routes: replay_histories(settings, routes),
        is_paused=lambda routes: not set(routes).isdisjoint(state.paused_routes),
    )
    control = Control(
        queue,
        state,
        publisher,
        router.routes,
        reloading,
        backfills=backfills,
        replays=replays,
        tables=_existing_tables(settings),
        loads_first=loads_first,
    )
    note = CommitWaitNote(checkpoint_store(settings), settings.cdc_name)
    meter = None if settings.cdc_metrics_address is None else Meter(router)
    listener = Listener(
        monitor,
        router,
        publisher,
        control,
        _journal(settings),
        commit_wait_note=note,
        meter=meter,
        rates=RateNotes(redis, settings.cdc_name, router, meter),
        recent=_recent(settings, router, state),
    )
    if reloading is not None:
        reloading.stop = listener.stop
    return listener


def command_queue(settings: ListenerSettings) -> CommandQueue:
    """Return the commands waiting for the listener."""
    return CommandQueue(checkpoint_store(settings), settings.cdc_name)


def backfill_store(settings: ListenerSettings) -> BackfillStore:
    """Return the backfills with their progress."""
    return BackfillStore(checkpoint_store(settings), settings.cdc_name)


def _existing_tables(settings: ListenerSettings) -> ExistingTables:
    return ExistingTables(
        names=lambda: [(each.schema, each.name) for each in read_existing_tables(settings)[1]],
        estimate=lambda schema, table: plan_backfill(settings, schema, table, None, 1).estimate,
        name=settings.cdc_name,
    )


def read_offers(settings: ListenerSettings) -> list[str]:
    """Return the commands of the backfills that the listener offers after an accepted gap."""
    state = control_state(settings)
    state.read()
    return offered_in(state.fields)


def replay_store(settings: ListenerSettings) -> ReplayStore:
    """Return the replays with their progress."""
    return ReplayStore(checkpoint_store(settings), settings.cdc_name)


def journal_reader(settings: ListenerSettings) -> JournalReader:
    """Return the journal of CDC_JOURNAL. Raise JournalError if it is not set, MissingExtraError."""
    if settings.cdc_journal is None:
        raise JournalError(
            "There is no journal: CDC_JOURNAL is not set.",
            hint="Set CDC_JOURNAL to a directory, for the listener and for this command. The journal keeps what is "
            "committed from then on.",
            code="journal_missing",
        )
    return JournalReader(journal_path(settings.cdc_journal, settings.cdc_name))


def replay_histories(settings: ListenerSettings, routes: Sequence[Route]) -> list[History]:
    """Return the histories that a replay of these routes can read, the journal first. Raise JournalError if none."""
    found: list[History] = []
    is_binlog = settings.database_type is DatabaseType.MYSQL
    if settings.cdc_journal is not None or not is_binlog:
        found.append(journal_reader(settings))
    if is_binlog:
        check_extra("mysql")
        from listener.daemon.mysql_parts import binlog_history

        found.append(binlog_history(settings, routes, lambda: _position_in_binlog(settings)))
    return found


def _journal(settings: ListenerSettings) -> Journal | None:
    if settings.cdc_journal is None:
        return None
    return Journal(
        journal_path(settings.cdc_journal, settings.cdc_name),
        max_age=settings.cdc_journal_age,
        max_bytes=settings.cdc_journal_size,
    )


def recent_reader(settings: ListenerSettings) -> RecentReader:
    """Return a reader of the recent changes."""
    return RecentReader(RecentStore(checkpoint_store(settings), settings.cdc_name))


def _recent(settings: ListenerSettings, router: BinlogRouter, state: ControlState) -> RecentChanges | None:
    if not settings.cdc_recent_size:
        return None
    return RecentChanges(
        RecentStore(checkpoint_store(settings), settings.cdc_name),
        router,
        max_bytes=settings.cdc_recent_size,
        read_keys=lambda: _keys(settings, router),
        in_force=lambda: InForce(set(state.paused_routes), state.skips),
    )


def _keys(settings: ListenerSettings, router: BinlogRouter) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the key of each table that a route may watch. Raise CDCError."""
    url = settings.database_url.get_secret_value()
    if settings.database_type is not DatabaseType.MYSQL:
        found = read_existing_tables(settings)[1]
    else:
        from listener.mysql import existing_tables as mysql_tables

        schemas = {home_schema(url), *(each.schema for each in router.routes)}
        found = [each for schema in schemas for each in mysql_tables.read_existing_tables(url, schema)]
    return {(each.schema, each.name): each.key for each in found}


def plan_backfill(
    settings: ListenerSettings, schema: str, table: str, where: str | None, chunk: int
) -> TablePlan:
    """Return how a table would be read. Raise BackfillRefusedError, SourceError, SourceLostError."""
    if settings.database_type is DatabaseType.MYSQL:
        check_extra("mysql")
        from listener.daemon.mysql_parts import plan_binlog_backfill

        return plan_binlog_backfill(settings, schema, table, where, chunk)
    from listener.daemon.postgres_parts import plan_wal_backfill

    return plan_wal_backfill(settings, schema, table, where, chunk)


def count_backfill(settings: ListenerSettings, schema: str, table: str, where: str | None) -> int:
    """Return how many rows a backfill would find now; the server reads all of them."""
    if settings.database_type is DatabaseType.MYSQL:
        from listener.daemon.mysql_parts import count_binlog_backfill

        return count_binlog_backfill(settings, schema, table, where)
    from listener.daemon.postgres_parts import count_wal_backfill

    return count_wal_backfill(settings, schema, table, where)


def control_state(settings: ListenerSettings) -> ControlState:
    """Return what is paused or skipped, after reading it."""
    return ControlState(checkpoint_store(settings), settings.cdc_name)


def _monitor(
    settings: ListenerSettings, router: BinlogRouter, *, accept_gap: bool, from_start: bool
) -> Monitor:
    if settings.database_type is DatabaseType.MYSQL:
        check_extra("mysql")
        from listener.daemon.mysql_parts import make_binlog_monitor

        return make_binlog_monitor(settings, router, accept_gap=accept_gap, from_start=from_start)
    if from_start:
        raise SourceError(
            "PostgreSQL has no log from before its replication slot.",
            hint="Run without --from-start: reading begins where the slot was created.",
            code="from_start_unsupported",
        )
    from listener.daemon.postgres_parts import make_wal_monitor

    return make_wal_monitor(settings, router, accept_gap=accept_gap)


def make_tail(
    settings: ListenerSettings,
    router: BinlogRouter,
    selected: BinlogRouter,
    needed: Sequence[tuple[str, str]] = (),
) -> Tail:
    """Return a tail of the log from now on, for the tables that routes of `selected` select, not yet connected.

    `router` has the prefixes of enqueued tasks. `needed` are tables that must be visible.
    """
    if settings.database_type is DatabaseType.MYSQL:
        check_extra("mysql")
        from listener.daemon.mysql_parts import make_binlog_tail

        return make_binlog_tail(settings, selected)
    from listener.daemon.postgres_parts import make_wal_tail

    return make_wal_tail(settings, router, selected, needed)


def _publisher(settings: ListenerSettings) -> Publisher:
    app = celery_app(settings)
    if not is_redis(app):
        return KombuPublisher(
            app,
            cache_url(settings),
            name=settings.cdc_name,
            max_queue=settings.cdc_max_queue,
            max_set_aside=settings.cdc_max_set_aside,
            max_parked=settings.cdc_max_parked,
            spans=make_spans(),
        )
    return RedisPublisher(
        app,
        name=settings.cdc_name,
        durability=settings.cdc_durability,
        coalesce_interval=settings.cdc_coalesce_interval,
        batch_wait=settings.cdc_batch_wait,
        max_queue=settings.cdc_max_queue,
        max_set_aside=settings.cdc_max_set_aside,
        max_parked=settings.cdc_max_parked,
        spans=make_spans(),
    )


def is_redis(app: Celery) -> bool:
    """Return whether the app's broker is Redis."""
    with app.connection_for_write() as connection:
        return bool(connection.transport.driver_type == "redis")


def checkpoint_store(settings: ListenerSettings) -> RedisConnection:
    """Return a connection to the Redis with checkpoint and parked changes: the broker, if it is Redis."""
    app = celery_app(settings)
    if is_redis(app):
        return RedisConnection.of_broker(app)
    return RedisConnection.of_cache(cache_url(settings))


def check_everything(settings: ListenerSettings, router: BinlogRouter) -> Iterator[Finding]:
    """Yield the findings about database, broker, cache and workers."""
    app = celery_app(settings)
    yield from check_broker(
        app, router.routes, durability=settings.cdc_durability, max_queue=settings.cdc_max_queue
    )
    yield from check_cache(cache_url(settings))
    if settings.database_type is DatabaseType.MYSQL:
        yield from check_bookmark(
            checkpoint_store(settings),
            cache_url(settings),
            name=settings.cdc_name,
            checkpoint=_saved(settings).position,
        )
        yield from _check_binlog(settings, router)
        return
    from listener.daemon.postgres_parts import check_wal

    yield from check_wal(settings, router, _saved(settings))


def _check_binlog(settings: ListenerSettings, router: BinlogRouter) -> Iterator[Finding]:
    try:
        check_extra("mysql")
    except MissingExtraError as error:
        yield finding_from("database", error)
        return
    from listener.daemon.mysql_parts import check_binlog

    yield from check_binlog(settings, router, _position_in_binlog(settings))


def read_existing_tables(settings: ListenerSettings) -> tuple[str, list[ExistingTable]]:
    """Return the schema of the application's tables, and the existing tables. Raise CDCError."""
    url = settings.database_url.get_secret_value()
    home = home_schema(url)
    if settings.database_type is DatabaseType.MYSQL:
        check_extra("mysql")
        from listener.mysql import existing_tables as mysql_tables

        return home, mysql_tables.read_existing_tables(url, home)
    from listener.postgres import existing_tables as postgres_tables

    return home, postgres_tables.read_existing_tables(url)


def _saved(settings: ListenerSettings) -> SavedPosition:
    """Return the saved state; empty if the broker is unavailable, which another finding reports."""
    try:
        return read_saved_position(checkpoint_store(settings), settings.cdc_name)
    except CDCError:
        return SavedPosition(None, None, 0)


def _position_in_binlog(settings: ListenerSettings) -> str | None:
    """Return the checkpoint, or the bookmark if the broker has none."""
    if (saved := _saved(settings).position) is not None:
        return saved
    try:
        return read_bookmark(cache_url(settings), settings.cdc_name)
    except CDCError:
        return None


def read_status(settings: ListenerSettings, router: BinlogRouter) -> Status:
    """Return the listener's status. Raise CDCError if database or broker does not answer."""
    try:
        saved = read_saved_position(checkpoint_store(settings), settings.cdc_name)
    except BrokerAwayError as error:
        raise BrokerAwayError(error.message, hint=STORE_AWAY) from error
    return Status(
        name=settings.cdc_name,
        source=read_source_status(settings, router, saved.position, saved.notes),
        saved=saved,
        lag_alarm=settings.cdc_lag_alarm,
        offers=tuple(read_offers(settings)),
    )


class StatusReader:
    """Reads the status repeatedly, in one open database session; one thread at a time."""

    def __init__(self, settings: ListenerSettings, router: BinlogRouter) -> None:
        self._settings = settings
        self._router = router
        self._gauge: Any = None

    def read(self, redis: RedisConnection) -> Status:
        """Return the listener's status; `redis` has the checkpoint. Raises what `read_status` raises."""
        settings, was_open = self._settings, self._gauge is not None
        saved = ask_saved_position(redis, settings.cdc_name)
        state = ControlState(redis, settings.cdc_name)
        state.read()
        try:
            source = self._source(saved)
        except SourceLostError:
            if not was_open:
                raise
            source = self._source(saved)  # the open session had ended
        return Status(
            name=settings.cdc_name,
            source=source,
            saved=saved,
            lag_alarm=settings.cdc_lag_alarm,
            offers=tuple(offered_in(state.fields)),
        )

    def close(self) -> None:
        """End the session."""
        if self._gauge is not None:
            self._gauge.close()

    def _source(self, saved: SavedPosition) -> SourceStatus:
        settings = self._settings
        if settings.database_type is DatabaseType.MYSQL:
            check_extra("mysql")
            from listener.daemon.mysql_parts import make_binlog_gauge

            self._gauge = self._gauge or make_binlog_gauge(settings)
            found: SourceStatus = self._gauge.read(saved.position or _position_in_binlog(settings))
            return found
        from listener.daemon.postgres_parts import ask_wal_status, make_wal_gauge

        self._gauge = self._gauge or make_wal_gauge(settings)
        return ask_wal_status(self._gauge, settings, self._router, saved.position, saved.notes)


def read_source_status(
    settings: ListenerSettings,
    router: BinlogRouter,
    published: str | None = None,
    notes: str | None = None,
) -> SourceStatus:
    """Return what the database reports; `published` is the checkpoint, if known, with its `notes`."""
    if settings.database_type is DatabaseType.MYSQL:
        check_extra("mysql")
        from listener.daemon.mysql_parts import read_binlog_status

        return read_binlog_status(settings, published or _position_in_binlog(settings))
    from listener.daemon.postgres_parts import read_wal_status

    return read_wal_status(settings, router, published, notes)
