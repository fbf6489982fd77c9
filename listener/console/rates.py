"""The rates of each route, now and over the last hour, from the listener's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from listener.metrics.rates import EVERY

if TYPE_CHECKING:
    from listener.metrics.rates import RateSample

__all__ = ["NO_RATE", "Rates", "RouteRate", "rates_of"]

_FRESH: Final = 5 * EVERY  # seconds; an older sample is not current
_HOUR: Final = 3600.0
_MINUTES: Final = 60
_WIDTH: Final = 120
_HEIGHT: Final = 20


class RouteRate(NamedTuple):
    """One route; all of them together have one too."""

    tasks_now: float | None  # per second; None: unknown
    changes_now: float | None  # per second, fired or not
    tasks: int  # in the last hour
    parked: int  # the same
    points: str  # of a polyline in 120 by 20: tasks per minute in the last hour


class Rates(NamedTuple):
    """All routes."""

    all: RouteRate
    by_route: Mapping[str, RouteRate]  # by the route's id
    is_counted: bool  # a listener has written recently

    @property
    def busiest(self) -> Sequence[str]:
        """The ids of the routes that did something, the busiest first."""
        return sorted(self.by_route, key=lambda route: (-self.by_route[route].tasks, route))


NO_RATE: Final = RouteRate(None, None, 0, 0, "")


def rates_of(samples: Sequence[RateSample], now: float | None = None) -> Rates:
    """Return the rates; `now` in seconds since 1970."""
    at = time() if now is None else now
    recent = [each for each in samples if at - _HOUR < each.at <= at + EVERY]
    last = recent[-1] if recent and at - recent[-1].at < _FRESH else None
    routes = {route for each in recent for route in each.routes}
    found = {route: _rate(recent, last, at, {route}) for route in routes}
    whole = _rate(recent, last, at, routes)
    read = None if last is None else last.read / last.seconds
    return Rates(whole._replace(changes_now=read), found, last is not None)


def _rate(samples: Sequence[RateSample], last: RateSample | None, now: float, routes: set[str]) -> RouteRate:
    tasks = changes = None
    if last is not None:
        done = [last.routes[route] for route in routes & last.routes.keys()]
        tasks = sum(each.published for each in done) / last.seconds
        changes = sum(map(sum, done)) / last.seconds
    minutes, parked = [0] * _MINUTES, 0
    for each in samples:
        mine = [each.routes[route] for route in routes & each.routes.keys()]
        parked += sum(one.parked for one in mine)
        place = min(_MINUTES - 1, max(0, int((each.at - (now - _HOUR)) // 60)))
        minutes[place] += sum(one.published for one in mine)
    return RouteRate(tasks, changes, sum(minutes), parked, _points(minutes))


def _points(minutes: Sequence[int]) -> str:
    highest = max(minutes)
    if not highest:
        return ""
    return " ".join(
        f"{round(place / (_MINUTES - 1) * _WIDTH, 1):g},{round(_HEIGHT - number / highest * _HEIGHT, 1):g}"
        for place, number in enumerate(minutes)
    )
