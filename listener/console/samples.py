"""The listener's progress over the last hours: one line in Redis every ten seconds while a console runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from cdc_tasks.errors import CDCError
from listener.core.source_status import Reader
from listener.metrics.rates import watching_commands

if TYPE_CHECKING:
    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings

__all__ = ["Graph", "Sample", "Samples", "graph_of"]

log = structlog.get_logger()

_EVERY: Final = 10.0  # seconds
_KEPT: Final = 8_640  # a day
_MILLISECONDS: Final = str(int(_EVERY * 900))  # in which no other console of the same listener writes
_GAP: Final = 3 * _EVERY  # seconds without a sample that the graph shows as a gap
_WIDTH: Final = 600
_HEIGHT: Final = 100


class Sample(NamedTuple):
    """The state at one moment; None: unknown."""

    at: float  # seconds since 1970
    lag_seconds: float | None
    lag_bytes: int | None
    retained_bytes: int | None
    reads: bool


class Graph(NamedTuple):
    """The lag over some hours, as an SVG of 600 by 100."""

    lines: Sequence[str]  # points of polylines: one for each time without a gap
    without_reader: Sequence[tuple[float, float]]  # x and width
    highest: float  # seconds
    hours: float


class Samples:
    """Writes and reads the samples of one listener."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)

    def start(self) -> None:
        """Write a sample every ten seconds, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)

    def read(self, hours: float) -> list[Sample]:
        """Return the samples of the last hours, the oldest first; raise BrokerAwayError, BrokerError."""
        number = int(hours * 3600 / _EVERY)
        with self._facts.stores.opened() as redis:
            (texts,) = redis.ask([("LRANGE", self._key(redis.prefixed("")), str(-number), "-1")])
        oldest = time() - hours * 3600
        return [sample for text in texts if (sample := Sample(*json.loads(text))).at >= oldest]

    def _key(self, prefix: str) -> str:
        return f"{prefix}cdc:{self._settings.cdc_name}:console:samples"

    def _run(self) -> None:
        while True:
            try:
                self._look()
                self._write(self._sample())
            except CDCError as error:
                log.debug("no_sample", error=error.message)
            if self._stopped.wait(_EVERY):
                return

    def _sample(self) -> Sample:
        status = self._facts.status().value
        if status is None:
            return Sample(time(), None, None, None, reads=False)
        source = status.source
        reads = source.reader is Reader.RUNNING
        return Sample(time(), status.lag_seconds, source.lag_bytes, source.retained_bytes, reads)

    def _look(self) -> None:
        """Report that a console is open, so that the listener counts."""
        with self._facts.stores.opened() as redis:
            redis.ask(watching_commands(redis, self._settings.cdc_name))

    def _write(self, sample: Sample) -> None:
        with self._facts.stores.opened() as redis:
            key = self._key(redis.prefixed(""))
            (is_first,) = redis.ask([("SET", f"{key}:lock", "1", "NX", "PX", _MILLISECONDS)])
            if is_first:
                redis.ask([("RPUSH", key, json.dumps(sample)), ("LTRIM", key, str(-_KEPT), "-1")])


def graph_of(samples: Sequence[Sample], hours: float, now: float) -> Graph:
    """Return the graph of the lag in seconds; unknown values are gaps."""
    known = [each.lag_seconds for each in samples if each.lag_seconds is not None]
    highest = max([1.0, *known])
    begin = now - hours * 3600

    def x_of(sample: Sample) -> float:
        return round((sample.at - begin) / (hours * 3600) * _WIDTH, 1)

    lines = [
        " ".join(
            f"{x_of(each)},{round(_HEIGHT - (each.lag_seconds or 0.0) / highest * _HEIGHT, 1)}"
            for each in run
        )
        for run in _runs(samples)
    ]
    width = round(_EVERY / (hours * 3600) * _WIDTH + 0.5, 1)
    return Graph(lines, [(x_of(each), width) for each in samples if not each.reads], highest, hours)


def _runs(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yield the samples with a known lag, cut where one is missing."""
    run: list[Sample] = []
    for each in samples:
        if run and (each.lag_seconds is None or each.at - run[-1].at > _GAP):
            yield run
            run = []
        if each.lag_seconds is not None:
            run.append(each)
    if run:
        yield run
