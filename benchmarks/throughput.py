"""The rows a second of each contender."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Final, TypedDict, TypeVar

from benchmarks import postgres_contenders
from benchmarks.contenders import Contender, Run
from benchmarks.postgres_stage import PostgresStage
from benchmarks.readings import cpu_seconds, peak_memory
from benchmarks.stage import Stage

__all__ = ["Drained", "Rows", "compare", "drain", "measure", "rotated", "vary_transactions", "vary_width"]

AnyStage = TypeVar("AnyStage", bound=Stage)

_EVERY: Final = 0.01  # seconds between two samples
_WARM: Final = 0.25  # the share of the rows before timing starts: a JVM warms up with them
_TIMEOUT: Final = 900.0  # seconds

TRANSACTIONS: Final = (1, 10, 100, 1_000, 100_000)


class Drained(TypedDict):
    """The results of one contender over all rounds."""

    rates: list[float]  # rows a second, of each round
    rate: float  # the median
    from_start: float  # rows a second since the start of the process, with the warm-up; the median
    cpu: float  # microseconds of its processor time for a row; the median
    memory: float  # MB; the peak over all rounds


@dataclass(frozen=True)
class Rows:
    """The rows that every contender reads."""

    count: int
    transaction: int = 100  # rows in each
    table: str = "tickets"

    def __str__(self) -> str:
        return f"{self.count:,} {self.table}, {self.transaction:,} at a time"


@dataclass(frozen=True)
class _Result:
    rate: float
    from_start: float
    cpu: float
    memory: float


def compare(rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Drained]:
    """Have every contender read the same rows."""
    return measure(PostgresStage(), postgres_contenders.ALL, Rows(rows), rounds, say)


def vary_width(rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Drained]]:
    """Measure tables of 3, 9 and 41 columns."""
    return {
        table: _measure_fast(Rows(rows, table=table), rounds, say) for table in ("narrow", "tickets", "wide")
    }


def vary_transactions(rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Drained]]:
    """Measure transactions of 1 to 100,000 rows."""
    return {
        str(size): _measure_fast(Rows(max(rows, size), transaction=size), rounds, say)
        for size in TRANSACTIONS
    }


def _measure_fast(rows: Rows, rounds: int, say: Callable[[str], None]) -> dict[str, Drained]:
    return measure(PostgresStage(), postgres_contenders.FAST, rows, rounds, say)


def measure(
    stage: AnyStage,
    contenders: Sequence[Contender[AnyStage]],
    rows: Rows,
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Drained]:
    """Have the contenders read the same rows in turn, in another order each round. Opens and closes the stage."""
    results: dict[str, list[_Result]] = {each.name: [] for each in contenders}
    with stage:
        for each in contenders:
            each.prepare(stage)
        for number in range(rounds):
            stage.fill(rows.table, rows.count, transaction=rows.transaction)
            for each in rotated(contenders, number):
                result = drain(each, stage, int(rows.count * each.share))
                results[each.name].append(result)
                say(f"{rows}, round {number + 1}: {each.name:15} {result.rate:9,.0f}/s")
    return {name: _summary(found) for name, found in results.items()}


def rotated(contenders: Sequence[Contender[AnyStage]], by: int) -> Iterable[Contender[AnyStage]]:
    by %= len(contenders)
    return [*contenders[by:], *contenders[:by]]


def drain(contender: Contender[AnyStage], stage: AnyStage, rows: int) -> _Result:
    """Have one contender read `rows` rows; return its rate without and with warm-up, processor time and memory."""
    run = contender.start(stage)
    try:
        samples, cpu, memory = _watch(run, rows)
    finally:
        run.end()
    contender.skip_the_rest(stage)
    (begin, _), (end, total) = samples[0], samples[-1]
    warm, done = next((sample for sample in samples[:-1] if sample[1] >= total * _WARM), samples[0])
    rate = (1 - done / total) * rows / (end - warm)
    return _Result(rate, rows / (end - begin), cpu / rows * 1e6, memory)


def _watch(run: Run, rows: int) -> tuple[list[tuple[float, float]], float, float]:
    """Return samples (time, progress) until it is done, its processor time since the first row, and its peak memory."""
    samples: list[tuple[float, float]] = []
    pid, cpu, before, memory = run.process.pid, 0.0, None, 0.0
    deadline = time.monotonic() + _TIMEOUT
    while True:
        done = run.is_done(rows)
        samples.append((time.monotonic(), run.progress()))
        if done:
            return samples, cpu - (before or 0.0), memory
        ended = run.process.poll() is not None and not run.is_done(rows)
        if ended or time.monotonic() > deadline:
            raise AssertionError(f"{run} ended or stopped at {samples[-1][1]:,.0f} of {rows:,}")
        with suppress(ProcessLookupError):  # the process has just ended
            cpu, memory = cpu_seconds(pid), peak_memory(pid)
        if before is None and samples[-1][1]:
            before = cpu  # the start is measured elsewhere
        time.sleep(_EVERY)


def _summary(results: Sequence[_Result]) -> Drained:
    return {
        "rates": [round(each.rate) for each in results],
        "rate": round(median(each.rate for each in results)),
        "from_start": round(median(each.from_start for each in results)),
        "cpu": round(median(each.cpu for each in results), 2),
        "memory": round(max(each.memory for each in results), 1),
    }
