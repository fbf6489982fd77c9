"""What the routes did a second, and in the last hour, from the samples that the listener wrote."""

from __future__ import annotations

from listener.console.rates import rates_of
from listener.metrics.rates import RateSample, RouteSample

_NOW = 100_000.0


def _sample(ago: float, published: int, parked: int = 0, filtered: int = 0) -> RateSample:
    return RateSample(_NOW - ago, 5.0, 100, {"one": RouteSample(published, parked, filtered)})


def test_the_rate_is_that_of_the_last_sample_and_the_hour_has_all() -> None:
    found = rates_of([_sample(4_000, 1_000), _sample(1_800, 20, parked=2), _sample(3, 10, filtered=15)], _NOW)
    route = found.by_route["one"]
    assert (route.tasks_now, route.changes_now, route.tasks, route.parked) == (2.0, 5.0, 30, 2)
    assert (found.all.changes_now, found.is_counted, found.busiest) == (20.0, True, ["one"])
    assert len(route.points.split()) == 60


def test_without_a_fresh_sample_nothing_is_said_of_now() -> None:
    found = rates_of([_sample(600, 7)], _NOW)
    assert (found.all.tasks_now, found.all.tasks, found.is_counted) == (None, 7, False)
    assert rates_of([], _NOW).all == (None, None, 0, 0, "")
