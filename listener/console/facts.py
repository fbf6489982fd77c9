"""The data of the pages, from the checkpoint's Redis, the broker, the cache and the database's catalogue.

Each part is read separately. If a server does not answer, its part shows the error, and the others are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from kombu.utils.encoding import bytes_to_str

from cdc_tasks import cache
from cdc_tasks.broker.message_groups import groups_on
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.master_cache_notes import LastWrite, last_write
from cdc_tasks.notify import message_record
from cdc_tasks.words import counted
from listener.cli.output import describe_route
from listener.cli.parked_changes import ParkedStore
from listener.console.connections import BrokerConnection, Stores
from listener.console.queues import QueueLength, Queues
from listener.console.rates import NO_RATE, RouteRate, rates_of
from listener.control.backfills import BackfillState, BackfillStore
from listener.control.commands import CommandQueue
from listener.control.control import ControlState
from listener.control.replays import ReplayState, ReplayStore
from listener.core.source_status import Reader
from listener.daemon.application import celery_app, router_for
from listener.daemon.wiring import StatusReader
from listener.metrics.rates import RateSample, read_rates

if TYPE_CHECKING:
    from celery import Celery

    from cdc_tasks.broker.redis.message_groups import HeldUp
    from cdc_tasks.dead_letters.store import DeadLetter
    from cdc_tasks.record import Outcome
    from cdc_tasks.routing.router import BinlogRouter, Route
    from listener.daemon.settings import ListenerSettings
    from listener.daemon.status import Status
    from listener.publish.parked import ParkedChange

__all__ = ["CachedTable", "Facts", "Part", "QueueLength", "RouteState", "Some", "health"]

T = TypeVar("T")

_REFRESH: Final = "cdc_tasks.refresh_master_cache"
_FRESH: Final = 1.5  # seconds in which several viewers get one answer
MOST: Final = 100  # lines of a table on a page
_LOOKED_AT: Final = 1_000  # of unordered records: the newest of these are shown


class Part(NamedTuple, Generic[T]):
    """The data read, or the error."""

    value: T | None
    error: str | None = None
    hint: str | None = None

    @property
    def is_known(self) -> bool:
        return self.error is None


class Some(NamedTuple, Generic[T]):
    """Some records, up to the lines of a page."""

    shown: Sequence[T]
    total: int
    looked_at: int  # if it is below the total, others may be newer

    @property
    def more(self) -> int:
        return max(self.total - len(self.shown), 0)


class Health(NamedTuple):
    """The state in one sentence."""

    word: str  # "well", "warning" or "bad"
    sentence: str


class CachedKey(NamedTuple):
    """A key of the master cache."""

    name: str
    size: int  # bytes
    rows: int | None  # None: written by an older version


class CachedTable(NamedTuple):
    """A table of the master cache."""

    table: str
    last: LastWrite | None  # None: no refresh yet, or Redis has lost it
    keys: Sequence[CachedKey]  # that exist

    @property
    def by_task(self) -> str | None:
        """The id of the task that wrote last; None: a command, or unknown."""
        by = self.last.note.by if self.last is not None and self.last.note is not None else "@"
        return None if "@" in by else by


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """A route, and the commands in force for it."""

    described: Mapping[str, str]
    paused_by: str | None
    skipped_until: str | None
    parked: int
    letters: int
    has_more_parked: bool  # than counted
    rate: RouteRate
    waiting: int | None  # messages in its queue; None: unknown


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
        return Part(None, error.message, error.hint)


class Facts:
    """Everything that the pages need; safe for several threads."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self.app: Celery = celery_app(settings)
        self.stores = Stores(settings)
        self._broker = BrokerConnection(self.app)
        self._broker_queues = Queues(settings, self.app, self._broker)
        self.status: _Fresh[Status] = _Fresh(self._status)
        self.rates: _Fresh[list[RateSample]] = _Fresh(self._rates)
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
        self.messages_sent: _Fresh[int] = _Fresh(message_record.count)
        self.queues: _Fresh[list[QueueLength]] = _Fresh(self._queues)

    @property
    def name(self) -> str:
        """CDC_NAME."""
        return self._settings.cdc_name

    @property
    def is_shipped_app(self) -> bool:
        """Whether the workers run cdc-tasks' own application, the help desk, and not a user's."""
        return self._settings.cdc_app is None

    @cached_property
    def router(self) -> BinlogRouter:
        """The routes, as of their first use. Raises RouteError and others."""
        return router_for(self._settings)

    def forget(self) -> None:
        """Read everything again, after an action."""
        for each in vars(self).values():
            if isinstance(each, _Fresh):
                each.forget()

    def routes(self) -> Part[list[RouteState]]:
        """Return the routes with the commands in force for each."""
        return _part(self._routes)

    def _routes(self) -> list[RouteState]:
        control = self.control().value or {}
        parked, has_more = self._parked_by_task().value or ({}, False)
        letters = self.letter_counts().value or {}
        rates = rates_of(self.rates().value or ())
        lengths = {each.name: each.length for each in self.queues().value or ()}
        return [
            RouteState(
                described=described,
                paused_by=control.get(f"route:{route.id}", {}).get("who"),
                skipped_until=control.get(f"skip:{route.id}", {}).get("until"),
                parked=parked.get(route.task, 0),
                letters=letters.get(route.task, 0),
                has_more_parked=has_more and route.task in parked,
                rate=rates.by_route.get(route.id, NO_RATE),
                waiting=lengths.get(described["queue"]),
            )
            for route, described in self._described()
        ]

    def descriptions(self) -> Mapping[str, Mapping[str, str]]:
        """Return each route as text, by id; empty if the routes cannot be loaded."""
        return _part(lambda: {route.id: described for route, described in self._described()}).value or {}

    def described_route(self, name: str) -> Mapping[str, str]:
        """Return the route with this id as text. Raise CDCError."""
        for route, described in self._described():
            if route.id == name:
                return described
        raise CDCError(
            f"There is no route {name[:100]}.",
            hint="Load the routes again: they may have changed.",
            code="route_unknown",
        )

    def _described(self) -> Iterator[tuple[Route, Mapping[str, str]]]:
        for route in self.router.routes:
            yield route, {**describe_route(route), "queue": _queue_of(self.app, route.task, route.queue)}

    def close(self) -> None:
        """Close all connections."""
        self._broker_queues.close()
        self._broker.close()
        self.stores.close()
        if "_status_reader" in vars(self):
            self._status_reader.close()

    @cached_property
    def _status_reader(self) -> StatusReader:
        return StatusReader(self._settings, self.router)

    def _status(self) -> Status:
        reader = self._status_reader
        with self.stores.opened() as redis:
            return reader.read(redis)

    def _rates(self) -> list[RateSample]:
        with self.stores.opened() as redis:
            return read_rates(redis, self.name)

    def _control(self) -> Mapping[str, Mapping[str, Any]]:
        with self.stores.opened() as redis:
            state = ControlState(redis, self.name)
            state.read()
            return dict(state.fields)

    def _record(self) -> Sequence[Outcome]:
        with self.stores.opened() as redis:
            return CommandQueue(redis, self.name).record()

    def _backfills(self) -> list[BackfillState]:
        with self.stores.opened() as redis:
            return BackfillStore(redis, self.name).read()

    def _replays(self) -> list[ReplayState]:
        with self.stores.opened() as redis:
            return ReplayStore(redis, self.name).read()

    def _parked(self) -> Some[ParkedChange]:
        with self.stores.opened() as redis:
            store = ParkedStore(redis, self.name)
            found = list(islice(store, _LOOKED_AT))
            total = max(store.count(), len(found)) if len(found) == _LOOKED_AT else len(found)
        found.sort(key=lambda each: (each.parked_at, each.id), reverse=True)
        return Some(found[:MOST], total, len(found))

    def _counted_parked(self) -> tuple[Mapping[str, int], bool]:
        """Return the number of parked changes per task, and whether there are more."""
        with self.stores.opened() as redis:
            store = ParkedStore(redis, self.name)
            found = Counter(each.task for each in islice(store, _LOOKED_AT))
            return found, found.total() == _LOOKED_AT and store.count() > _LOOKED_AT

    def parked_change(self, name: str) -> ParkedChange:
        """Return one parked change. Raise NotParkedError and others."""
        with self.stores.opened() as redis:
            return ParkedStore(redis, self.name).get(name)

    def _key_count(self) -> int:
        return self._broker.ask(lambda kombu: groups_on(kombu).count())

    def _keys(self) -> Some[HeldUp]:
        def read(kombu: Any) -> tuple[list[HeldUp], int]:
            groups = groups_on(kombu)
            return groups.oldest(MOST), groups.count()

        found, total = self._broker.ask(read)
        return Some(found, max(total, len(found)), total)

    def waiting_for(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Return the number of messages waiting for each of these keys; empty if the broker does not answer."""

        def read(kombu: Any) -> dict[str, int]:
            groups = groups_on(kombu)
            found = [groups.of_key(key) for key in keys]
            return {each.key: each.waiting for each in found if each is not None}

        return _part(lambda: self._broker.ask(read)).value or {}

    def _queues(self) -> list[QueueLength]:
        status = self.status().value
        aside = {} if status is None else status.saved.set_aside
        return self._broker_queues.read(self.router.routes, aside, self.rates().value or ())

    def _cached(self) -> list[CachedTable]:
        tables = {
            route.table
            for route in self.router.routes
            if route.task == _REFRESH and not set("*?[") & set(route.table)
        }
        with cache.errors_translated():
            return [_cached_table(table) for table in sorted(tables)]


def _letters() -> Some[DeadLetter]:
    found = list(islice(dead_letters.every(), _LOOKED_AT))
    total = max(dead_letters.count(), len(found)) if len(found) == _LOOKED_AT else len(found)
    found.sort(key=lambda each: (each.failed_at, each.id), reverse=True)
    return Some(found[:MOST], total, len(found))


def _cached_table(table: str) -> CachedTable:
    client: Any = cache.client()
    last = last_write(table)
    rows = {} if last is None or last.note is None else last.note.rows
    names = list(rows) or [
        f"master:{table}",
        *map(bytes_to_str, client.scan_iter(match=f"master:{table}:*", count=500)),
    ]
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.strlen(name)
        sizes = pipeline.execute()
    keys = [
        CachedKey(name, int(size), rows.get(name)) for name, size in zip(names, sizes, strict=True) if size
    ]
    return CachedTable(table, last, keys)


def _scanned(client: Any, pattern: str) -> Iterator[str]:
    return map(bytes_to_str, client.scan_iter(match=pattern, count=500))


def _queue_of(app: Celery, task: str, queue: str | None) -> str:
    if queue is not None:
        return queue
    found = app.amqp.router.route({}, task).get("queue")
    return str(getattr(found, "name", None) or found or app.conf.task_default_queue)


def health(status: Part[Status], letters: int, held: int) -> Health:
    """Return the state in one sentence."""
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
    return Health("well", "All is well: a listener reads, and nothing needs a person.")
