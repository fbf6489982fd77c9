"""What the routes did in the last hour, for the console: counted only while one is open, written every five seconds.

An open console sets a key in Redis. The loop checks it every five seconds, and counts with a `Meter` from then
on, until no console has set the key for a minute. Without a console it counts nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import Final, NamedTuple

import structlog

from cdc_tasks.routing.router import BinlogRouter
from listener.core.publisher import BrokerAwayError, BrokerError
from listener.metrics.meter import Meter
from listener.publish.redis.connection import Command, RedisConnection

__all__ = ["EVERY", "RateNotes", "RateSample", "RouteSample", "read_rates", "watching_commands"]

log = structlog.get_logger()

EVERY: Final = 5.0  # seconds
_KEPT: Final = 720  # samples: an hour
_EXPIRES: Final = "7200"  # seconds
_WATCHED: Final = "60"  # seconds that a console counts as open


class RouteSample(NamedTuple):
    """What one route did in this time."""

    published: int  # changes whose tasks the broker holds
    parked: int
    filtered: int  # changes for which it did not fire


class RateSample(NamedTuple):
    """What the loop did within some seconds."""

    at: float  # their end, in seconds since 1970
    seconds: float
    read: int  # changes
    routes: Mapping[str, RouteSample]  # by the route's id; those that did something


class RateNotes:
    """Writes the loop's counters while a console is open. Only the loop uses it."""

    def __init__(self, redis: RedisConnection, name: str, router: BinlogRouter, meter: Meter | None) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME; `meter` is a permanent one, or None."""
        self._redis = redis
        self._watching, self._key = _keys(redis, name)
        self._router = router
        self._always = meter
        self._meter = meter
        self._next = monotonic() + EVERY / 10
        self._noted_at: float | None = None
        self._before: tuple[int, Mapping[str, RouteSample]] = 0, {}

    def look(self) -> Meter | None:
        """Return the meter to use from now on, or None. Queries Redis every five seconds."""
        if monotonic() >= self._next:
            self._next = monotonic() + EVERY
            try:
                self._look()
            except (
                BrokerAwayError,
                BrokerError,
            ) as error:  # the publisher gets the same error, and reports it
                log.debug("rates_not_written", error=error.message)
        return self._meter

    def _look(self) -> None:
        (is_watched,) = self._redis.ask([("EXISTS", self._watching)])
        if not is_watched:
            self._meter, self._noted_at = self._always, None
            return
        meter = self._meter = self._meter or Meter(self._router)
        counted, now = (meter.read.total(), _by_route(meter)), monotonic()
        if self._noted_at is not None:
            self._write(_since(self._before, counted, now - self._noted_at))
        self._before, self._noted_at = counted, now

    def _write(self, sample: RateSample) -> None:
        commands: list[Command] = [
            ("RPUSH", self._key, json.dumps(sample, separators=(",", ":"))),
            ("LTRIM", self._key, str(-_KEPT), "-1"),
            ("EXPIRE", self._key, _EXPIRES),
        ]
        self._redis.ask(commands)


def watching_commands(redis: RedisConnection, name: str) -> Sequence[Command]:
    """Return the command with which a console shows that it is open."""
    return [("SET", _keys(redis, name)[0], "1", "EX", _WATCHED)]


def read_rates(redis: RedisConnection, name: str) -> list[RateSample]:
    """Return the samples of the last hour, the oldest first; raises BrokerAwayError, BrokerError."""
    (texts,) = redis.ask([("LRANGE", _keys(redis, name)[1], "0", "-1")])
    return [_parsed(text) for text in texts]


def _keys(redis: RedisConnection, name: str) -> tuple[str, str]:
    prefix = redis.prefixed(f"cdc:{name}:console")
    return f"{prefix}:watching", f"{prefix}:rates"


def _parsed(text: bytes) -> RateSample:
    at, seconds, read, routes = json.loads(text)
    return RateSample(at, seconds, read, {route: RouteSample(*each) for route, each in routes.items()})


def _by_route(meter: Meter) -> Mapping[str, RouteSample]:
    """Return what each route did since the meter began."""
    found = [Counter[str]() for _ in RouteSample._fields]
    for total, counts in zip(found, (meter.published, meter.parked, meter.filtered), strict=True):
        for (route, _), number in counts.items():
            total[route] += number
    return {
        route: RouteSample(*(each[route] for each in found)) for route in {*found[0], *found[1], *found[2]}
    }


def _since(
    before: tuple[int, Mapping[str, RouteSample]], now: tuple[int, Mapping[str, RouteSample]], seconds: float
) -> RateSample:
    """Return what was done between two samples."""
    nothing = RouteSample(0, 0, 0)
    routes = {
        route: RouteSample(*(new - old for new, old in zip(each, before[1].get(route, nothing), strict=True)))
        for route, each in now[1].items()
    }
    done = {route: each for route, each in routes.items() if any(each)}
    return RateSample(round(time(), 1), round(seconds, 3), now[0] - before[0], done)
