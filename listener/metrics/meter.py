"""The loop's counters: per batch, never per row, and only if they are shown somewhere.

A homogeneous batch, the usual case, costs a few passes in C over its changes. Which routes they fired follows from
their kinds if nothing was left out; only otherwise the calls themselves are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter, itemgetter
from time import monotonic, time
from typing import Any, Final, NamedTuple

from cdc_tasks.changes import Change, EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Call, Parked
from listener.core.source import Batch
from listener.metrics.histogram import Histogram

__all__ = ["ENQUEUED", "Meter", "RouteCount"]

ENQUEUED: Final = "enqueued"  # one route for all enqueued tasks, because any writer may name them

_KIND = attrgetter("kind")
_ROUTE_ID = attrgetter("id")
_FIRST = itemgetter(0)
_SECOND = itemgetter(1)

_Kind = tuple[str, str, str]  # schema, table, event's value
_PUBLISH_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_QUEUE_BOUNDS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    3600.0,
)


class RouteCount(NamedTuple):
    """The key of a counter: a route's id, and the event."""

    route: str
    event: str


class _Tally(NamedTuple):
    """A batch that the broker may not hold yet."""

    began: float  # as `monotonic`
    committed_at: datetime | None  # of its first change
    read: Mapping[str, int]  # event -> changes
    fired: Mapping[RouteCount, int]
    parked: Mapping[RouteCount, int]
    filtered: Mapping[RouteCount, int]


class Meter:
    """Counts published changes, once the broker holds them. The loop writes; any thread may read."""

    def __init__(self, router: BinlogRouter) -> None:
        self._router = router
        # Position and what was counted; None: an empty batch, whose position stands for those in front of it.
        self._in_flight: list[tuple[str, _Tally | None]] = []
        self.read: Counter[str] = Counter()
        self.published: Counter[RouteCount] = Counter()
        self.parked: Counter[RouteCount] = Counter()
        self.filtered: Counter[RouteCount] = Counter()
        self.batches = 0
        self.publishing = Histogram(_PUBLISH_BOUNDS)
        self.queueing = Histogram(_QUEUE_BOUNDS)
        self.losses = 0  # how often the stream ended and was opened again
        self.errors: dict[str, float] = {}  # error code -> its last time, as `time.time`
        self.batch_at: float | None = None  # the last batch, as `monotonic`; None: nothing is being read
        self.heard_at: float | None = None  # the last batch with changes
        self.is_held = False  # a person has paused the stream

    def opening(self) -> None:
        """Note that nothing is being read."""
        self.batch_at = None

    def moved(self) -> None:
        """Note that the loop runs, even without a batch."""
        self.batch_at = monotonic()

    def lost(self, error: CDCError) -> None:
        """Note that reading begins again, and drop the batch in flight: it comes again."""
        self.losses += 1
        self.errors[error.code] = time()
        self._in_flight.clear()
        self.opening()

    def fired(self, batch: Batch, fired: Iterable[Call | Parked]) -> list[Call | Parked]:
        """Return what the batch fired, as a list; it counts when its position is confirmed."""
        calls = list(fired)
        now = self.batch_at = monotonic()
        changes = batch.changes
        if not (calls or changes):
            if self._in_flight:
                self._in_flight.append((batch.position, None))
            return calls
        if changes:
            self.heard_at = now
        kinds = _counted(changes)
        watching = self._watching(kinds)
        # The reads of a backfill are among the calls, and not among the changes.
        is_all = batch.chunk is None and _is_all(calls, watching)
        done, parked = (watching, {}) if is_all else _what_fired(calls)
        tally = _Tally(
            began=now,
            committed_at=changes[0].committed_at if changes else None,
            read=_by_event(kinds),
            fired=done,
            parked=parked,
            filtered=_without(watching, done, parked),
        )
        self._in_flight.append((batch.position, tally))
        return calls

    def confirmed(self, position: str) -> None:
        """Count the batches up to this position, and how long they took."""
        places = [place for place, (its, _) in enumerate(self._in_flight, 1) if its == position]
        for _, tally in self._in_flight[: places[-1] if places else 0]:
            if tally is not None:
                self._count(tally)
        del self._in_flight[: places[-1] if places else 0]

    def _count(self, tally: _Tally) -> None:
        self.batches += 1
        self.read.update(tally.read)
        self.published.update(tally.fired)
        self.parked.update(tally.parked)
        self.filtered.update(tally.filtered)
        self.publishing.observe(monotonic() - tally.began)
        if tally.committed_at is not None:
            self.queueing.observe(max(0.0, (datetime.now(UTC) - tally.committed_at).total_seconds()))

    def _watching(self, kinds: Mapping[_Kind, int]) -> Mapping[RouteCount, int]:
        """Return how often each route was evaluated."""
        found: Counter[RouteCount] = Counter()
        for kind, number in kinds.items():
            for route in self._routes_of(kind):
                found[RouteCount(route, kind[2])] += number
        return found

    def _routes_of(self, kind: _Kind) -> Sequence[str]:
        if kind[2] == EventType.ENQUEUED.value:
            return (ENQUEUED,)
        return [route.id for route in self._router.routes_for(kind)]


def _is_all(calls: Sequence[Call | Parked], watching: Mapping[RouteCount, int]) -> bool:
    """Return whether each change fired each route that watches it."""
    return len(calls) == sum(watching.values()) and Parked not in set(map(type, calls))


def _what_fired(
    calls: Sequence[Call | Parked],
) -> tuple[Mapping[RouteCount, int], Mapping[RouteCount, int]]:
    """Return how often each route fired, and how often a change was parked instead."""
    ids = map(_ROUTE_ID, map(_FIRST, calls))
    counted = Counter(zip(ids, map(_KIND, map(_SECOND, calls)), map(type, calls), strict=True))
    done: Counter[RouteCount] = Counter()
    parked: Counter[RouteCount] = Counter()
    for (route, kind, which), number in counted.items():
        (parked if which is Parked else done)[RouteCount(route or ENQUEUED, kind[2])] += number
    return done, parked


def _counted(changes: Sequence[Change]) -> Mapping[_Kind, int]:
    """Return how many changes there are of each kind; most often of one."""
    kinds: list[_Kind] = list(map(_KIND, changes))
    if not kinds or kinds.count(kinds[0]) == len(kinds):
        return {kinds[0]: len(kinds)} if kinds else {}
    return Counter(kinds)


def _by_event(kinds: Mapping[_Kind, int]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for kind, number in kinds.items():
        found[kind[2]] += number
    return found


def _without(watching: Mapping[RouteCount, int], *others: Mapping[Any, int]) -> Mapping[RouteCount, int]:
    """Return how often a route was evaluated and did not fire; backfill reads do not count."""
    left = {each: number - sum(other.get(each, 0) for other in others) for each, number in watching.items()}
    return {each: number for each, number in left.items() if number > 0}
