"""The cost of order by key for the listener on Redis: the same rows without keys, and with few and many keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, TypedDict

from benchmarks.contenders import Ours, Queueing, Run
from benchmarks.postgres_stage import PostgresStage
from benchmarks.readings import cpu_seconds
from benchmarks.routes import QUEUE
from benchmarks.throughput import drain, rotated
from cdc_tasks.broker.redis.message_groups import LENGTHS
from harness.listener_process import ListenerProcess

__all__ = ["KEYS", "Keyed", "publish_keyed"]

KEYS: Final = {
    "no key": "every_ticket",
    "1 key": "by_status",
    "10 keys": "by_assignee",
    "1,000 keys": "by_author",
}
"""What the page calls each set of routes."""
_ONE_EACH: Final = "a key for each row"
KEYS[_ONE_EACH] = "by_id"


class Keyed(TypedDict):
    """The results of one set of routes over all rounds; medians."""

    rates: list[int]  # rows a second, of each round
    rate: int
    ratio: float  # of the rate without keys in the same round
    cpu: float  # microseconds of the listener's processor time for a row
    redis_cpu: float  # the same of Redis


@dataclass(frozen=True)
class _Result:
    rate: float
    cpu: float
    redis_cpu: float


class KeyedStage(PostgresStage):
    """Tickets with 1, 10 and 1,000 different values in three columns."""

    def fill(self, table: str, rows: int, *, transaction: int) -> None:
        self.run(f"""
            DO $$
            BEGIN
              FOR i IN 1 .. {rows // transaction} LOOP
                INSERT INTO {table} (title, assigned_to_id, created_by, status, priority, created_at, flag, description)
                SELECT 'Fix the bug in the frobnicator', n % 10, n % 1000, 'open', 'high', now(), true,
                  'some longer description text here, with sixty characters or so.....'
                FROM generate_series(i * {transaction}, (i + 1) * {transaction} - 1) AS n;
                COMMIT;
              END LOOP;
            END $$
        """)  # noqa: S608 - our own names and values
        self.run("CHECKPOINT")

    def queued(self) -> int:
        return super().queued() + int(self.broker.hget(LENGTHS, QUEUE) or 0)


class _OursKeyed(Ours[KeyedStage]):
    def __init__(self, name: str, routes: str) -> None:
        self.name = name
        self.routes = routes

    def prepare(self, stage: KeyedStage) -> None:
        with self._listener(stage) as listener:
            listener.wait_for("streaming")
            listener.stop()

    def start(self, stage: KeyedStage) -> Run:
        return Queueing(self._listener(stage).process, stage)

    def skip_the_rest(self, stage: KeyedStage) -> None:
        super().skip_the_rest(stage)
        for key in stage.broker.scan_iter("cdc:keys*", count=10_000):
            stage.broker.unlink(key)

    def _listener(self, stage: KeyedStage) -> ListenerProcess:
        return stage.listener(self.routes, CDC_NAME=f"of_{self.routes}")


def publish_keyed(rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Keyed]:
    """Have the listener publish the same rows without keys and with them, in turn, in another order each round."""
    contenders = [_OursKeyed(name, routes) for name, routes in KEYS.items()]
    results: dict[str, list[_Result]] = {name: [] for name in KEYS}
    with KeyedStage() as stage:
        for each in contenders:
            each.prepare(stage)
        for number in range(rounds):
            stage.fill("tickets", rows, transaction=100)
            for each in rotated(contenders, number):
                before = cpu_seconds(stage.valkey.pid)
                result = drain(each, stage, rows)
                redis_cpu = (cpu_seconds(stage.valkey.pid) - before) / rows * 1e6
                results[each.name].append(_Result(result.rate, result.cpu, redis_cpu))
                say(
                    f"round {number + 1}: {each.name:20} {result.rate:9,.0f}/s, "
                    f"{result.cpu:.1f} µs of CPU, and {redis_cpu:.1f} µs of Redis'"
                )
    plain = results["no key"]
    return {name: _summary(found, plain) for name, found in results.items()}


def _summary(results: Sequence[_Result], plain: Sequence[_Result]) -> Keyed:
    return {
        "rates": [round(each.rate) for each in results],
        "rate": round(median(each.rate for each in results)),
        "ratio": round(median(each.rate / of.rate for each, of in zip(results, plain, strict=True)), 2),
        "cpu": round(median(each.cpu for each in results), 1),
        "redis_cpu": round(median(each.redis_cpu for each in results), 1),
    }
