"""The time from a commit to the queue and to its task, and the time that the listener needs to start."""

from __future__ import annotations

import json
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, TypedDict

from benchmarks.postgres_stage import PostgresStage
from benchmarks.routes import KEYS, OTHER_QUEUE, QUEUE
from benchmarks.tasks import FAILS, read_notes
from harness.waiting import wait_until
from harness.worker import Worker

__all__ = [
    "BINS",
    "Latency",
    "time_beside_a_failing_key",
    "time_beside_a_full_queue",
    "time_start",
    "time_to_queue",
    "time_to_task",
]

BINS: Final = (0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 1000)  # upper ends in milliseconds

_WARM: Final = 2.0  # seconds at the start that do not count


class Latency(TypedDict):
    """Milliseconds from a commit, by the server's time stamp, to the measured event."""

    count: int
    p50: float
    p95: float
    p99: float
    worst: float
    histogram: list[int]  # counts, by `BINS`


def time_to_queue(per_second: int, seconds: float, say: Callable[[str], None]) -> Latency:
    """Commit single rows; measure until a client that waits at the queue has each message."""
    with PostgresStage() as stage, stage.listener() as listener:
        listener.wait_for("streaming")
        writing = stage.write_steadily(per_second, seconds + _WARM)
        arrived = _pop_all(stage, writing, [QUEUE])
        listener.stop()
    return _summary([(when, _committed_at(message)) for _, when, message in arrived], say)


def time_beside_a_full_queue(
    per_second: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Latency]:
    """Measure the time to one queue while another one, with half of the tasks, is either emptied or not."""
    return {
        "emptied": _time_beside(per_second, seconds, say, queues=[QUEUE, OTHER_QUEUE]),
        "blocked": _time_beside(per_second, seconds, say, queues=[QUEUE]),
    }


def _time_beside(
    per_second: int, seconds: float, say: Callable[[str], None], *, queues: Sequence[str]
) -> Latency:
    with PostgresStage() as stage, stage.listener("two_queues", CDC_MAX_QUEUE="1000") as listener:
        listener.wait_for("streaming")
        writing = stage.write_steadily(per_second, seconds + _WARM)
        arrived = _pop_all(stage, writing, queues)
        listener.stop()
    return _summary(
        [(when, _committed_at(message)) for queue, when, message in arrived if queue == QUEUE], say
    )


def time_to_task(per_second: int, seconds: float, say: Callable[[str], None]) -> Latency:
    """Commit single rows; measure until each task runs, in a prefork worker with two processes."""
    with TemporaryDirectory() as directory, PostgresStage() as stage:
        notes = Path(directory) / "notes"
        with Worker(worker_environment(stage, notes), "-Q", QUEUE), stage.listener() as listener:
            listener.wait_for("streaming")
            stage.write_steadily(per_second, seconds + _WARM).wait()
            (count,) = stage.fetch("SELECT count(*) FROM tickets")[0]
            wait_until(lambda: len(read_notes(notes)) == count, timeout=60, what="every task to run")
            listener.stop()
        return _summary([(ran, committed) for ran, committed, _ in read_notes(notes)], say)


def time_beside_a_failing_key(
    per_second: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Latency]:
    """Measure the time to the tasks of 49 keys while the task of a fiftieth succeeds, or always fails."""
    return {
        "succeeds": _time_beside_key(per_second, seconds, say, {}),
        "fails": _time_beside_key(per_second, seconds, say, {FAILS: "1"}),
    }


def _time_beside_key(
    per_second: int, seconds: float, say: Callable[[str], None], more: dict[str, str]
) -> Latency:
    with TemporaryDirectory() as directory, PostgresStage() as stage:
        notes = Path(directory) / "notes"
        environment = {**worker_environment(stage, notes), **more}
        with Worker(environment, "-Q", QUEUE), stage.listener("with_a_failing_key") as listener:
            listener.wait_for("streaming")
            stage.write_steadily(per_second, seconds + _WARM).wait()
            (count,) = stage.fetch(f"SELECT count(*) FROM tickets WHERE id % {KEYS} <> 0")[0]  # noqa: S608  # a number
            wait_until(
                lambda: len(read_notes(notes)) == count, timeout=60, what="every task of the other keys"
            )
            listener.stop()
        return _summary([(ran, committed) for ran, committed, _ in read_notes(notes)], say)


def time_start(rounds: int, say: Callable[[str], None]) -> list[float]:
    """Return the seconds from the listener's start until a change that was already committed is in the queue."""
    found = []
    with PostgresStage() as stage:
        with stage.listener() as listener:
            listener.wait_for("streaming")
            listener.stop()
        for _ in range(rounds):
            stage.fill("tickets", 1, transaction=1)
            stage.broker.delete(QUEUE)
            start = time.monotonic()
            with stage.listener() as listener:
                wait_until(lambda: stage.queued() > 0, timeout=60, what="the first change", every=0.002)
                found.append(round(time.monotonic() - start, 3))
                listener.stop()
    say(f"start to first change: {median(found):.2f} s")
    return found


def worker_environment(stage: PostgresStage, notes: Path) -> dict[str, str]:
    """Return the environment of a worker for `benchmarks.tasks`."""
    return {
        "DATABASE_URL": stage.postgres.url,
        "CELERY_BROKER_URL": stage.valkey.url,
        "CACHE_URL": stage.valkey.url_of(1),
        "CDC_TASK_MODULES": "benchmarks.tasks",
        "BENCH_NOTES": str(notes),
    }


def _pop_all(
    stage: PostgresStage, writing: subprocess.Popen[bytes], queues: Sequence[str]
) -> list[tuple[str, float, bytes]]:
    """Return (queue, time, message) of each message that arrives while `writing` runs and a second longer."""
    arrived: list[tuple[str, float, bytes]] = []
    while True:
        message = stage.broker.brpop(list(queues), timeout=1)
        if message:
            arrived.append((message[0].decode(), time.time(), message[1]))
        elif writing.poll() is not None:
            return arrived


def _committed_at(message: bytes) -> float:
    ((change,), _, _) = json.loads(b64decode(json.loads(message)["body"]))
    return datetime.fromisoformat(change["committed_at"]).timestamp()


def _summary(pairs: Sequence[tuple[float, float]], say: Callable[[str], None]) -> Latency:
    first = min(committed for _, committed in pairs)
    waits = sorted((arrived - committed) * 1000 for arrived, committed in pairs if committed >= first + _WARM)
    latency: Latency = {
        "count": len(waits),
        "p50": _quantile(waits, 0.5),
        "p95": _quantile(waits, 0.95),
        "p99": _quantile(waits, 0.99),
        "worst": round(waits[-1], 2),
        "histogram": _histogram(waits),
    }
    say("latency: " + ", ".join(f"{name} {latency[name]} ms" for name in ("p50", "p95", "p99", "worst")))
    return latency


def _quantile(ordered: Sequence[float], part: float) -> float:
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)], 2)


def _histogram(waits: Sequence[float]) -> list[int]:
    counts = [0] * len(BINS)
    for wait in waits:
        counts[next((place for place, end in enumerate(BINS) if wait <= end), len(BINS) - 1)] += 1
    return counts
