"""Measure, and write the page: `make bench`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.latency import time_start, time_to_queue, time_to_task
from benchmarks.memory import idle_share, peak_by_transaction
from benchmarks.stage import Stage
from benchmarks.throughput import compare, vary_transactions, vary_width
from benchmarks.workers import work

_DOCS = Path(__file__).resolve().parents[1] / "docs"

Say = Callable[[str], None]


class _Plan:
    """What is measured, and how thoroughly."""

    def __init__(self, *, quick: bool, rounds: int | None) -> None:
        self.rounds = rounds or (1 if quick else 5)
        self.rows = 40_000 if quick else 400_000
        self._sweep_rows = 20_000 if quick else 200_000
        self._sweep_rounds = min(self.rounds, 3)
        self._seconds = 5 if quick else 30
        self.quick = quick

    def throughput(self, say: Say) -> Any:
        return compare(self.rows, self.rounds, say)

    def width(self, say: Say) -> Any:
        return vary_width(self._sweep_rows, self._sweep_rounds, say)

    def transactions(self, say: Say) -> Any:
        return vary_transactions(self._sweep_rows, self._sweep_rounds, say)

    def latency(self, say: Say) -> Any:
        return {
            "queue": time_to_queue(1_000, self._seconds, say),
            "task": time_to_task(200, self._seconds, say),
            "start": time_start(self.rounds, say),
        }

    def memory(self, say: Say) -> Any:
        sizes = (100, 1_000, 10_000, 100_000) if self.quick else (100, 1_000, 10_000, 100_000, 1_000_000)
        return {"peak": peak_by_transaction(sizes, say), "idle": idle_share(self._seconds * 2, say)}

    def workers(self, say: Say) -> Any:
        return work(2_000 if self.quick else 10_000, say)


_PARTS = ("throughput", "width", "transactions", "latency", "memory", "workers")


def main(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs: to see that it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each contender runs.")] = None,
    only: Annotated[str, typer.Option(help=f"Some of {','.join(_PARTS)}.")] = ",".join(_PARTS),
    output: Annotated[Path, typer.Option(help="Where benchmarks.md goes.")] = _DOCS,
) -> None:
    """Measure, and write benchmarks.md with its charts."""
    plan = _Plan(quick=quick, rounds=rounds)
    known = output / "benchmarks" / "results.json"
    results = json.loads(known.read_text()) if known.exists() else {}
    for part in only.split(","):
        if part not in _PARTS:
            raise typer.BadParameter(f"{part!r} is none of {', '.join(_PARTS)}", param_hint="--only")
        typer.echo(f"--- {part}")
        results[part] = getattr(plan, part)(typer.echo)
        if part == "throughput" or "about" not in results:
            results["about"] = _about(plan)
        report.keep(results, output)
    missing = [part for part in _PARTS if part not in results]
    if missing:
        typer.echo(f"not measured yet, so no page is written: {', '.join(missing)}")
        return
    report.write(results, output)
    typer.echo(f"written: {output / 'benchmarks.md'}")


def _about(plan: _Plan) -> dict[str, Any]:
    with Stage() as stage:
        postgres = stage.version
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
        "postgres": postgres,
        "rows": plan.rows,
        "rounds": plan.rounds,
        "quick": plan.quick,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
