"""The listener's memory for transactions of any size, and its processor time when idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.postgres_stage import PostgresStage
from benchmarks.readings import cpu_seconds, peak_memory
from benchmarks.routes import QUEUE
from benchmarks.stage import Stage
from harness.waiting import wait_until

__all__ = ["idle_share", "peak_by_transaction"]

_AT_LEAST: Final = 50_000  # rows in total, so that small transactions fill batches too


def peak_by_transaction(stage: Stage, sizes: Sequence[int], say: Callable[[str], None]) -> dict[str, float]:
    """Return the listener's peak memory in MB by rows in a transaction, each in its own process.

    Opens and closes the stage.
    """
    found = {}
    with stage:
        with stage.listener() as listener:
            listener.wait_for("streaming")
            listener.stop()
        for size in sizes:
            rows = max(size, _AT_LEAST // size * size)
            stage.fill("tickets", rows, transaction=size)
            with stage.listener() as listener:
                wait_until(lambda rows=rows: stage.queued() >= rows, timeout=900, what=f"{rows} tasks")
                found[str(size)] = round(peak_memory(listener.process.pid), 1)
                listener.stop()
            stage.broker.unlink(QUEUE)
            say(f"transactions of {size:9,} rows: {found[str(size)]} MB at the peak")
    return found


def idle_share(seconds: float, say: Callable[[str], None]) -> float:
    """Return the percentage of a core that the idle listener uses."""
    with PostgresStage() as stage, stage.listener() as listener:
        listener.wait_for("streaming")
        time.sleep(3)
        before = cpu_seconds(listener.process.pid)
        time.sleep(seconds)
        share = (cpu_seconds(listener.process.pid) - before) / seconds * 100
        listener.stop()
    say(f"idle: {share:.2f} % of a core")
    return round(share, 2)
