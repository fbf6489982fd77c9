"""What the pages show, read where it is: the checkpoint's Redis, the broker, the cache and the database's catalogue.

Each part is read by itself. One that does not answer leaves its error in its place, and the others are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from kombu.utils.encoding import bytes_to_str

from cdc_tasks import cache
from cdc_tasks.broker.message_groups import groups_on
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
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

__all__ = ["CachedTable", "Facts", "Part", "QueueLength", "RouteState", "health"]

T = TypeVar("T")

_REFRESH: Final = "cdc_tasks.refresh_master_cache"
_FRESH: Final = 1.5  # seconds in which several viewers get one answer
MOST: Final = 500  # lines on a page


class Part(NamedTuple, Generic[T]):
    """What was read, or why it was not."""

    value: T | None
    error: str | None = None
    hint: str | None = None

    @property
    def is_known(self) -> bool:
        return self.error is None


class Health(NamedTuple):
    """How it is, in one sentence."""

    word: str  # "well", "warning" or "bad"
    sentence: str


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
    rate: RouteRate
    waiting: int | None  # messages in its queue; None: not known


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
    """All that the pages ask for; safe for several threads."""

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
        self.parked: _Fresh[list[ParkedChange]] = _Fresh(self._parked)
        self.letters: _Fresh[list[DeadLetter]] = _Fresh(_letters)
        self.letter_counts: _Fresh[dict[str, int]] = _Fresh(dead_letters.count_by_task)
        self.keys: _Fresh[list[HeldUp]] = _Fresh(self._keys)
        self.cached: _Fresh[list[CachedTable]] = _Fresh(self._cached)
        self.messages_sent: _Fresh[int] = _Fresh(message_record.count)
        self.queues: _Fresh[list[QueueLength]] = _Fresh(self._queues)

    @property
    def name(self) -> str:
        """CDC_NAME."""
        return self._settings.cdc_name

    @property
    def is_shipped_app(self) -> bool:
        """Whether the workers run cdc-tasks' own application, the help desk, and not somebody else's."""
        return self._settings.cdc_app is None

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
        parked: dict[str, int] = {}
        for each in self.parked().value or ():
            parked[each.task] = parked.get(each.task, 0) + 1
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
                rate=rates.by_route.get(route.id, NO_RATE),
                waiting=lengths.get(described["queue"]),
            )
            for route, described in self._described()
        ]

    def described_route(self, name: str) -> Mapping[str, str]:
        """Return the route with this id as words; raises CDCError."""
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

    def _parked(self) -> list[ParkedChange]:
        with self.stores.opened() as redis:
            found = list(ParkedStore(redis, self.name))
        return sorted(found, key=lambda each: (each.parked_at, each.id), reverse=True)

    def parked_change(self, name: str) -> ParkedChange:
        """Return one parked change; raises NotParkedError and others."""
        with self.stores.opened() as redis:
            return ParkedStore(redis, self.name).get(name)

    def _keys(self) -> list[HeldUp]:
        found = self._broker.ask(lambda kombu: list(groups_on(kombu).held_up()))
        return sorted(found, key=lambda each: (each.since, each.key))

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


def _letters() -> list[DeadLetter]:
    return sorted(dead_letters.every(), key=lambda each: (each.failed_at, each.id), reverse=True)


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
