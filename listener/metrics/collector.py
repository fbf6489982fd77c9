"""Converts the listener's known state to Prometheus metrics, at a scrape; queries no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from cdc_tasks.routing.router import Route
from listener.control.recent.writer import RecentChanges
from listener.core.retry import Retry
from listener.core.source import Monitor
from listener.core.source_status import SourceStatus
from listener.metrics.families import COUNTER, FAMILIES, HISTOGRAM, Family
from listener.metrics.health import Condition, Reason, Role
from listener.metrics.histogram import Histogram
from listener.metrics.meter import ENQUEUED, Meter, RouteCount
from listener.metrics.sampler import Sampler
from listener.metrics.samples import QueueSample, StoreSample, WorkerSample

__all__ = ["Known", "Limits", "ListenerCollector"]

_BACKFILLS: Final = ("waiting", "running", "paused", "failed")

# Values of the labels, and the number.
_Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings that alerts compare with."""

    lag_bytes: int
    queue_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The sources of the listener's known state."""

    meter: Meter
    monitor: Monitor
    retries: Sequence[Retry]
    source: Sampler[SourceStatus]
    store: Sampler[StoreSample]
    queues: Sampler[QueueSample]
    workers: Sampler[WorkerSample]
    store_is_broker: bool  # the checkpoint is in the broker, else in the cache
    recent: RecentChanges | None = None  # None: nothing is noted

    @property
    def servers(self) -> Mapping[str, Sequence[Sampler[Any]]]:
        """The sampler of each server."""
        broker: list[Sampler[Any]] = [self.queues]
        cache: list[Sampler[Any]] = [self.workers]
        (broker if self.store_is_broker else cache).append(self.store)
        return {"database": [self.source], "broker": broker, "cache": cache}

    @property
    def _needed(self) -> Sequence[str]:
        """The required servers: the cache is one if it has the checkpoint."""
        return ("database", "broker") if self.store_is_broker else ("database", "broker", "cache")

    @property
    def up(self) -> Mapping[str, bool]:
        """Which server answers, without those not queried yet."""
        return {
            server: all(each.value is not None for each in asking)
            for server, asking in self.servers.items()
            if all(each.is_known for each in asking)
        }

    @property
    def role(self) -> Role:
        if self.monitor.is_standby:
            return Role.STANDBY
        return Role.STARTING if self.meter.batch_at is None else Role.LEADER

    @property
    def condition(self) -> Condition:
        """The state on which a probe decides."""
        now, meter, store = monotonic(), self.meter, self.store.value
        batch_at = meter.batch_at
        idle = None if batch_at is None else now - batch_at
        waits: dict[str, float] = {}
        for each in self.retries:
            if (trouble := each.trouble) is not None:
                waits[each.what] = max(waits.get(each.what, 0.0), now - trouble.since)
        moved = min((now - each.moved_at for each in self.retries), default=float("inf"))
        return Condition(
            role=self.role,
            idle=idle,
            moved=moved if idle is None else min(moved, idle),
            waits=waits,
            away=frozenset(server for server in self._needed if not self.up.get(server, True)),
            has_full_queue=store is not None and store.has_full_queue,
            is_paused=meter.is_held,
        )

    @property
    def silence(self) -> float:
        """How many seconds the source has sent nothing."""
        heard = self.meter.heard_at
        silence = self.monitor.silence
        return silence if heard is None else min(silence, monotonic() - heard)


class ListenerCollector(Collector):
    """Creates the families of `FAMILIES`; unknown values are left out, never reported as 0."""

    def __init__(
        self, known: Known, routes: Sequence[Route], *, name: str, info: tuple[str, str, str], limits: Limits
    ) -> None:
        """`name` is CDC_NAME; `info`: version, source and broker."""
        self._known = known
        self._tasks = {route.id: route.task for route in routes}
        self._name = name
        self._info = info
        self._limits = limits
        self._read: Mapping[str, Callable[[], _Samples]] = {
            **self._of_listener(),
            **self._of_loop(),
            **self._of_source(),
            **self._of_waiting(),
            **self._of_workers(),
        }

    def describe(self) -> Iterable[Any]:
        return ()  # the collector is ours alone

    def collect(self) -> Iterator[Any]:
        meter = self._known.meter
        for name, family in FAMILIES.items():
            if family.kind == HISTOGRAM:
                is_publishing = name == "cdc_publish_duration_seconds"
                yield self._histogram(name, family, meter.publishing if is_publishing else meter.queueing)
            else:
                yield self._numbers(name, family, self._read[name]())

    def _histogram(self, name: str, family: Family, found: Histogram) -> HistogramMetricFamily:
        made = HistogramMetricFamily(name, family.text, labels=["listener"])
        made.add_metric([self._name], found.buckets, found.sum)
        return made

    def _numbers(self, name: str, family: Family, samples: _Samples) -> Any:
        kind = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
        made: Any = kind(name, family.text, labels=["listener", *family.labels])
        for labels, number in samples:
            made.add_metric([self._name, *labels], float(number))
        return made

    # --- Each number: its labels and its value --------------------------------------------------------------

    def _of_listener(self) -> Mapping[str, Callable[[], _Samples]]:
        known = self._known
        return {
            "cdc_listener_info": lambda: [(self._info, 1)],
            "cdc_role": lambda: _one_of(Role, known.role),
            "cdc_ready": lambda: [((), not known.condition.reasons)],
            "cdc_not_ready": lambda: _these_of(Reason, known.condition.reasons),
            "cdc_server_up": lambda: [((server,), is_up) for server, is_up in known.up.items()],
            "cdc_routes": lambda: [((), len(self._tasks))],
            "cdc_route_reloads_total": lambda: _of(known.store.last, lambda store: [((), store.reloads)]),
            "cdc_reconnects_total": self._reconnects,
            "cdc_last_error_timestamp_seconds": self._errors,
        }

    def _of_loop(self) -> Mapping[str, Callable[[], _Samples]]:
        known, meter = self._known, self._known.meter
        return {
            "cdc_loop_idle_seconds": lambda: _known(known.condition.idle),
            "cdc_source_silence_seconds": lambda: [((), known.silence)] if meter.batch_at else [],
            "cdc_changes_read_total": lambda: [((event,), n) for event, n in dict(meter.read).items()],
            "cdc_changes_published_total": lambda: self._by_route(meter.published),
            "cdc_changes_filtered_total": lambda: self._by_route(meter.filtered),
            "cdc_changes_parked_total": lambda: self._by_route(meter.parked),
            "cdc_recent_changes_noted_total": lambda: _of(known.recent, lambda recent: [((), recent.noted)]),
            "cdc_recent_changes_left_out_total": lambda: _of(
                known.recent, lambda recent: _each({"rate": 0, "store": 0, **recent.left_out})
            ),
            "cdc_batches_total": lambda: [((), meter.batches)],
        }

    def _of_source(self) -> Mapping[str, Callable[[], _Samples]]:
        source = self._known.source
        return {
            "cdc_lag_seconds": lambda: _known(self._lag_seconds()),
            "cdc_lag_bytes": lambda: _of(source.value, lambda found: _known(found.lag_bytes)),
            "cdc_log_retained_bytes": lambda: _of(source.value, lambda found: _known(found.retained_bytes)),
            "cdc_log_left_bytes": lambda: _of(source.value, lambda found: _known(found.safe_bytes)),
            "cdc_lag_alarm_bytes": lambda: [((), self._limits.lag_bytes)],
        }

    def _of_waiting(self) -> Mapping[str, Callable[[], _Samples]]:
        store, queues = self._known.store, self._known.queues
        return {
            "cdc_paused": self._paused,
            "cdc_route_paused": lambda: _of(store.value, self._paused_routes),
            "cdc_parked_changes": lambda: _of(store.value, lambda found: [((), found.parked)]),
            "cdc_queue_messages": lambda: _of(queues.value, lambda found: _each(found.lengths)),
            "cdc_queue_oldest_message_age_seconds": lambda: _of(
                queues.value, lambda found: _each(found.ages)
            ),
            "cdc_queue_alarm_seconds": lambda: [((), self._limits.queue_seconds)],
            "cdc_set_aside_messages": lambda: _of(store.value, lambda found: _each(found.set_aside)),
            "cdc_held_keys": lambda: _of(store.value, lambda found: [((), found.held_keys)]),
            "cdc_backfills": lambda: _of(
                store.value, lambda found: [((state,), found.backfills.get(state, 0)) for state in _BACKFILLS]
            ),
        }

    def _of_workers(self) -> Mapping[str, Callable[[], _Samples]]:
        workers = self._known.workers

        def totals(what: str) -> Callable[[], _Samples]:
            return lambda: _of(
                workers.last,
                lambda found: [((of,), n) for (each, of), n in found.totals.items() if each == what],
            )

        return {
            "cdc_dead_letters": lambda: _of(workers.value, lambda found: _each(found.dead_letters)),
            "cdc_tasks_given_up_total": totals("given_up"),
            "cdc_tasks_retried_total": totals("retried"),
            "cdc_messages_delivered_total": totals("delivered"),
            "cdc_rate_waits_total": totals("rate_waits"),
        }

    def _by_route(self, counts: Mapping[RouteCount, int]) -> _Samples:
        for (route, event), number in dict(counts).items():
            task = "" if route == ENQUEUED else self._tasks.get(route, "")
            yield (route, task, event), number

    def _reconnects(self) -> _Samples:
        known = self._known
        losses = {"database": known.meter.losses, "broker": 0}
        for each in known.retries:
            losses[each.what] = losses.get(each.what, 0) + each.losses
        return _each(losses)

    def _errors(self) -> _Samples:
        known, found = self._known, dict[str, float]()
        samplers: tuple[Sampler[Any], ...] = (known.source, known.store, known.queues, known.workers)
        noted = [known.meter.errors, *(each.errors for each in known.retries)]
        for errors in (*noted, *(each.errors for each in samplers)):
            for code, at in dict(errors).items():
                found[code] = max(at, found.get(code, 0.0))
        return _each(found)

    def _lag_seconds(self) -> float | None:
        source, store = self._known.source.value, self._known.store.value
        if source is None or source.lag_bytes is None:
            return None
        if not source.lag_bytes:
            return 0.0
        if store is None or store.as_of is None:
            return None
        return max(0.0, (datetime.now(UTC) - store.as_of).total_seconds())

    def _paused(self) -> _Samples:
        yield ("command",), self._known.meter.is_held
        if (store := self._known.store.value) is not None:
            yield ("full_queue",), store.has_full_queue
            yield ("commit_not_visible",), store.awaits_commit

    def _paused_routes(self, store: StoreSample) -> _Samples:
        return [((route, task), route in store.paused_routes) for route, task in self._tasks.items()]


def _of(found: Any, read: Callable[[Any], _Samples]) -> _Samples:
    """Return the result of `read` for a sample; nothing if there is none."""
    return [] if found is None else read(found)


def _known(number: float | None) -> _Samples:
    return [] if number is None else [((), number)]


def _each(numbers: Mapping[str, float]) -> _Samples:
    return [((name,), number) for name, number in numbers.items()]


def _one_of(kinds: Iterable[str], which: str) -> _Samples:
    return [((str(each),), each == which) for each in kinds]


def _these_of(kinds: Iterable[str], which: Sequence[str]) -> _Samples:
    return [((str(each),), each in which) for each in kinds]
