"""Metrics for Prometheus that need an alert; Flower's page `/metrics` shows them with its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cdc_tasks import cache
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.worker import parked_counts, waiting_counts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.registry import CollectorRegistry

__all__ = ["expose"]

log = structlog.get_logger()


def expose(registry: CollectorRegistry = REGISTRY) -> None:
    """Add our metrics to this process's registry; each scrape queries Redis."""
    registry.register(_WaitingForAPerson())


class _WaitingForAPerson(Collector):
    """Dead letters, changes that failed in a route, and messages that wait in Redis until they are due."""

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return _families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        letters, changes, later, answered = _families()
        try:
            for task, number in dead_letters.count_by_task().items():
                letters.add_metric([task], number)
            for listener, number in parked_counts.counts().items():
                changes.add_metric([listener], number)
            for queue, number in waiting_counts.counts().items():
                later.add_metric([queue], number)
        except cache.CacheAwayError as away:  # Flower's own numbers are still useful
            log.warning("dead_letters_not_counted", error=away.message)
            return [_answered(answered, yes=False)]
        return [letters, changes, later, _answered(answered, yes=True)]


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("cdc_dead_letters", "Tasks that gave up: dead-letters list", labels=["task"]),
        GaugeMetricFamily("cdc_parked_changes", "Changes that a route could not take", labels=["listener"]),
        GaugeMetricFamily("cdc_waiting_messages", "Messages in Redis that are not due yet", labels=["queue"]),
        GaugeMetricFamily("cdc_redis_up", "Whether Redis has returned the numbers above"),
    )


def _answered(family: GaugeMetricFamily, *, yes: bool) -> GaugeMetricFamily:
    family.add_metric([], int(yes))
    return family
