"""What an operator is woken for, for Prometheus: on Flower's page `/metrics`, beside Flower's own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cdc_tasks import cache
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.worker import parked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.registry import CollectorRegistry

__all__ = ["expose"]

log = structlog.get_logger()


def expose(registry: CollectorRegistry = REGISTRY) -> None:
    """Add our numbers to those of this process; each scrape asks Redis anew."""
    registry.register(_WaitingForAPerson())


class _WaitingForAPerson(Collector):
    """Dead letters, and changes that no route could take."""

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return _families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        letters, changes, answered = _families()
        try:
            for task, number in dead_letters.count_by_task().items():
                letters.add_metric([task], number)
            for listener, number in parked.counts().items():
                changes.add_metric([listener], number)
        except cache.CacheAwayError as away:  # Flower's own numbers are still worth having
            log.warning("no_numbers_of_dead_letters", error=away.message)
            return [_answered(answered, yes=False)]
        return [letters, changes, _answered(answered, yes=True)]


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("cdc_dead_letters", "Tasks that gave up: dead-letters list", labels=["task"]),
        GaugeMetricFamily("cdc_parked_changes", "Changes that a route could not take", labels=["listener"]),
        GaugeMetricFamily("cdc_redis_up", "Whether Redis has told the two numbers above"),
    )


def _answered(family: GaugeMetricFamily, *, yes: bool) -> GaugeMetricFamily:
    family.add_metric([], int(yes))
    return family
