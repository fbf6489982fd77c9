"""The rows a second of a worker, row by row and in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from benchmarks.latency import worker_environment
from benchmarks.postgres_stage import PostgresStage
from benchmarks.routes import QUEUE
from benchmarks.tasks import read_notes
from harness.waiting import wait_until
from harness.worker import Worker

__all__ = ["Worked", "work"]


class Worked(TypedDict):
    """The results of one worker with two processes, whose tasks do nothing."""

    rows: int
    tasks: int
    tasks_per_second: float
    rows_per_second: float


def work(rows: int, say: Callable[[str], None]) -> dict[str, Worked]:
    """Measure one task for each row, and `batch=500` with ten times the rows."""
    return {
        "one by one": _work("every_row", rows, say),
        "batch=500": _work("in_batches", rows * 10, say),
    }


def _work(routes: str, rows: int, say: Callable[[str], None]) -> Worked:
    with TemporaryDirectory() as directory, PostgresStage() as stage:
        with stage.listener(routes) as listener:
            listener.wait_for("streaming")
            stage.fill("tickets", rows, transaction=1_000)
            stage.wait_until_quiet()
            listener.stop()
        notes = Path(directory) / "notes"
        with Worker(worker_environment(stage, notes), "-Q", QUEUE):
            wait_until(lambda: _rows(notes) >= rows, timeout=900, what="every task to run", every=0.2)
        ran = sorted(read_notes(notes))
    seconds = ran[-1][0] - ran[0][0]
    worked: Worked = {
        "rows": rows,
        "tasks": len(ran),
        "tasks_per_second": round(len(ran) / seconds),
        "rows_per_second": round(rows / seconds),
    }
    say(f"{routes}: {worked['tasks_per_second']:,} tasks/s, {worked['rows_per_second']:,} rows/s")
    return worked


def _rows(notes: Path) -> int:
    return sum(count for _, _, count in read_notes(notes)) if notes.exists() else 0
