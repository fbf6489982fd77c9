"""What the pages show, read where it is: the checkpoint's Redis, the broker, the cache and the database's catalogue.

Each part is read by itself. One that does not answer leaves its error in its place, and the others are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from kombu.utils.encoding import bytes_to_str

from cdc_tasks import cache
from cdc_tasks.broker.message_groups import groups_of
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted
from listener.cli.output import describe_route
from listener.cli.parked_changes import opened
from listener.control.backfills import BackfillState
from listener.control.commands import Outcome
from listener.control.replays import ReplayState
from listener.core.publisher import BrokerAwayError
from listener.core.source_status import Reader
from listener.daemon.application import celery_app, router_for
from listener.daemon.wiring import (
    STORE_AWAY,
    backfill_store,
    command_queue,
    control_state,
    read_status,
    replay_store,
)

if TYPE_CHECKING:
    from celery import Celery

    from cdc_tasks.broker.redis.message_groups import HeldUp
    from cdc_tasks.dead_letters.store import DeadLetter
    from cdc_tasks.routing.router import BinlogRouter
    from listener.daemon.settings import ListenerSettings
    from listener.daemon.status import Status
    from listener.publish.parked import ParkedChange

__all__ = ["CachedTable", "Facts", "Part", "QueueLength", "RouteState", "Some", "health"]

T = TypeVar("T")

_REFRESH: Final = "cdc_tasks.refresh_master_cache"
_FRESH: Final = 1.5  # seconds in which several viewers get one answer
MOST: Final = 100  # lines of a table on a page
_LOOKED_AT: Final = 1_000  # of what is kept without an order: the newest of these are shown


class Part(NamedTuple, Generic[T]):
    """What was read, or why it was not."""

    value: T | None
    error: str | None = None
    hint: str | None = None

    @property
    def is_known(self) -> bool:
        return self.error is None


class Some(NamedTuple, Generic[T]):
    """Some of what there is, up to the lines of a page."""

    shown: Sequence[T]
    total: int
    looked_at: int  # if it is below the total, others may be newer

    @property
    def more(self) -> int:
        return max(self.total - len(self.shown), 0)


class Health(NamedTuple):
    """How it is, in one sentence."""

    word: str  # "well", "warning" or "bad"
    sentence: str


class QueueLength(NamedTuple):
    """A queue that a route sends to."""

    name: str
    length: int | None  # None: the broker does not have it yet
    consumers: int | None  # None: not known on this broker
    set_aside: int


class CachedTable(NamedTuple):
    """A table of the master cache."""

    table: str
    refreshed_at: (
        datetime | None
    )  # when the refresh began that wrote last; None: none has, or Redis has lost it
    keys: Sequence[tuple[str, int]]  # each key of the table that is there, and its size in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """A route, and what is in force for it."""

    described: Mapping[str, str]
    paused_by: str | None
    skipped_until: str | None
    parked: int
    letters: int
    has_more_parked: bool  # than were counted


class _Fresh(Generic[T]):
    """Reads at most once in `_FRESH` seconds."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._lock = Lock()
        self._part: Part[T] | None = None
        self._at = float("-inf")

    def __call__(self) -> Part[T]:
        with self._lock:
            if self._part is None or monotonic() - self._at > _FRESH:
                self._part = _part(self._read)
                self._at = monotonic()
            return self._part

    def forget(self) -> None:
        """Read again at the next call."""
        self._at = float("-inf")


def _part(read: Callable[[], T]) -> Part[T]:
    try:
        return Part(read())
    except CDCError as error:
        away = STORE_AWAY if isinstance(error, BrokerAwayError) else None
        return Part(None, error.message, error.hint or away)


class Facts:
    """All that the pages ask for; safe for several threads."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self.app: Celery = celery_app(settings)
        self.status: _Fresh[Status] = _Fresh(lambda: read_status(settings, self.router))
        self.control: _Fresh[Mapping[str, Mapping[str, Any]]] = _Fresh(self._control)
        self.record: _Fresh[Sequence[Outcome]] = _Fresh(self._record)
        self.backfills: _Fresh[list[BackfillState]] = _Fresh(self._backfills)
        self.replays: _Fresh[list[ReplayState]] = _Fresh(self._replays)
        self.parked: _Fresh[Some[ParkedChange]] = _Fresh(self._parked)
        self.letters: _Fresh[Some[DeadLetter]] = _Fresh(_letters)
        self.letter_counts: _Fresh[dict[str, int]] = _Fresh(dead_letters.count_by_task)
        self.key_count: _Fresh[int] = _Fresh(self._key_count)
        self.keys: _Fresh[Some[HeldUp]] = _Fresh(self._keys)
        self._parked_by_task: _Fresh[tuple[Mapping[str, int], bool]] = _Fresh(self._counted_parked)
        self.cached: _Fresh[list[CachedTable]] = _Fresh(self._cached)

    @property
    def name(self) -> str:
        """CDC_NAME."""
        return self._settings.cdc_name

    @cached_property
    def router(self) -> BinlogRouter:
        """The routes, as the files had them when they were first asked for. Raises RouteError and others."""
        return router_for(self._settings)

    def forget(self) -> None:
        """Read all again: a person has changed something."""
        for each in vars(self).values():
            if isinstance(each, _Fresh):
                each.forget()

    def routes(self) -> Part[list[RouteState]]:
        """Return the routes with what is in force for each."""
        return _part(self._routes)

    def _routes(self) -> list[RouteState]:
        control = self.control().value or {}
        parked, has_more = self._parked_by_task().value or ({}, False)
        letters = self.letter_counts().value or {}
        return [
            RouteState(
                described={**describe_route(route), "queue": _queue_of(self.app, route.task, route.queue)},
                paused_by=control.get(f"route:{route.id}", {}).get("who"),
                skipped_until=control.get(f"skip:{route.id}", {}).get("until"),
                parked=parked.get(route.task, 0),
                letters=letters.get(route.task, 0),
                has_more_parked=has_more and route.task in parked,
            )
            for route in self.router.routes
        ]

    def _control(self) -> Mapping[str, Mapping[str, Any]]:
        state = control_state(self._settings)
        try:
            state.read()
            return dict(state.fields)
        finally:
            state.close()

    def _record(self) -> Sequence[Outcome]:
        queue = command_queue(self._settings)
        try:
            return queue.record()
        finally:
            queue.close()

    def _backfills(self) -> list[BackfillState]:
        store = backfill_store(self._settings)
        try:
            return store.read()
        finally:
            store.close()

    def _replays(self) -> list[ReplayState]:
        store = replay_store(self._settings)
        try:
            return store.read()
        finally:
            store.close()

    def _parked(self) -> Some[ParkedChange]:
        with opened(self._settings) as store:
            found = list(islice(store, _LOOKED_AT))
            total = max(store.count(), len(found)) if len(found) == _LOOKED_AT else len(found)
        found.sort(key=lambda each: (each.parked_at, each.id), reverse=True)
        return Some(found[:MOST], total, len(found))

    def _counted_parked(self) -> tuple[Mapping[str, int], bool]:
        """Return how many are parked of each task, and whether there are more."""
        with opened(self._settings) as store:
            found = Counter(each.task for each in islice(store, _LOOKED_AT))
            return found, found.total() == _LOOKED_AT and store.count() > _LOOKED_AT

    def _key_count(self) -> int:
        with groups_of(self.app) as groups:
            return groups.count()

    def _keys(self) -> Some[HeldUp]:
        with groups_of(self.app) as groups:
            found, total = groups.oldest(MOST), groups.count()
        return Some(found, max(total, len(found)), total)

    def queues(self, start: int = 0) -> Part[Some[QueueLength]]:
        """Return the lengths of the queues of one page: each is a question to the broker."""
        return _part(lambda: self._queues(start))

    def _queues(self, start: int) -> Some[QueueLength]:
        status = self.status().value
        aside = {} if status is None else status.saved.set_aside
        names = sorted(self._queue_names())
        found = list(_lengths(self.app, names[start : start + MOST], aside))
        return Some(found, len(names), len(names))

    def _cached(self) -> list[CachedTable]:
        tables = {
            route.table
            for route in self.router.routes
            if route.task == _REFRESH and not set("*?[") & set(route.table)
        }
        with cache.errors_translated():
            return [_cached_table(table) for table in sorted(tables)]

    def _queue_names(self) -> set[str]:
        names = set()
        for route in self.router.routes:
            names.add(_queue_of(self.app, route.task, route.queue))
        return names


def _letters() -> Some[DeadLetter]:
    found = list(islice(dead_letters.every(), _LOOKED_AT))
    total = max(dead_letters.count(), len(found)) if len(found) == _LOOKED_AT else len(found)
    found.sort(key=lambda each: (each.failed_at, each.id), reverse=True)
    return Some(found[:MOST], total, len(found))


def _cached_table(table: str) -> CachedTable:
    client: Any = cache.client()
    ticket = client.get(f"cdc:master-cache:{table}:written")  # microseconds since 1970, by Redis' clock
    at = None if ticket is None else datetime.fromtimestamp(int(ticket) / 1e6, UTC)
    names = [f"master:{table}", *client.scan_iter(match=f"master:{table}:*", count=500)]
    sizes = [(bytes_to_str(name), int(client.strlen(name))) for name in names]
    return CachedTable(table, at, [(name, size) for name, size in sizes if size])


def _queue_of(app: Celery, task: str, queue: str | None) -> str:
    if queue is not None:
        return queue
    found = app.amqp.router.route({}, task).get("queue")
    return str(getattr(found, "name", None) or found or app.conf.task_default_queue)


def _lengths(app: Celery, names: Sequence[str], aside: Mapping[str, int]) -> Iterator[QueueLength]:
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
            )
            for name in names:
                yield _length(connection, name, aside.get(name, 0))
    except _errors(app) as error:
        raise CDCError(
            f"The broker did not answer: {error}",
            hint="Start it, or correct CELERY_BROKER_URL.",
            code="broker_away",
        ) from error


def _errors(app: Celery) -> tuple[type[BaseException], ...]:
    from kombu.exceptions import OperationalError

    with app.connection_for_read() as connection:
        return (OperationalError, OSError, *connection.connection_errors)


def _length(connection: Any, name: str, set_aside: int) -> QueueLength:
    try:
        with connection.channel() as channel:
            declared = channel.queue_declare(name, passive=True)
    except connection.channel_errors:  # the broker does not have it yet; on Redis also one that is empty
        is_redis = connection.transport.driver_type == "redis"
        return QueueLength(name, 0 if is_redis else None, None, set_aside)
    consumers = declared.consumer_count if connection.transport.driver_type == "amqp" else None
    return QueueLength(name, int(declared.message_count), consumers, set_aside)


def health(status: Part[Status], letters: int, held: int) -> Health:
    """Say in one sentence how it is."""
    if status.value is None:
        return Health("bad", f"Not known: {status.error}")
    found = status.value
    if found.source.reader is not Reader.RUNNING:
        return Health("bad", f"No listener reads: {found.source.detail}. Changes wait in the database's log.")
    if not found.is_healthy:
        return Health("bad", "A listener reads, but changes are missing or do not reach it: see the alarms.")
    if any(found.alarms):
        return Health("warning", "A listener reads. Something needs a person: see the alarms.")
    waiting = [
        *([counted(letters, "task has given up", "tasks have given up")] if letters else []),
        *([counted(held, "key is held up", "keys are held up")] if held else []),
    ]
    if waiting:
        return Health("warning", f"A listener reads. {' and '.join(waiting)}.")
    return Health("well", "All is well: a listener reads, and nothing waits for a person.")
