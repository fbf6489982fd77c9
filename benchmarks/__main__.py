"""Measure, and write the page of results: `make bench`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import binlog, rabbitmq, report
from benchmarks.grouping import group
from benchmarks.keys import publish_keyed
from benchmarks.latency import (
    time_beside_a_failing_key,
    time_beside_a_full_queue,
    time_start,
    time_to_queue,
    time_to_task,
)
from benchmarks.memory import idle_share, peak_by_transaction
from benchmarks.messages import notify
from benchmarks.postgres_stage import PostgresStage
from benchmarks.rate_limited import wait_behind_rates
from benchmarks.runners import race
from benchmarks.throughput import Rows, compare, measure, vary_transactions, vary_width
from benchmarks.workers import work

_DOCS = Path(__file__).resolve().parents[1] / "docs"

Say = Callable[[str], None]


class _Plan:
    """What to measure, and with how many rows and rounds."""

    def __init__(self, *, quick: bool, rounds: int | None) -> None:
        self.rounds = rounds or (1 if quick else 5)
        self.rows = 40_000 if quick else 400_000
        self._memory_sizes = (100, 1_000, 10_000, 100_000, *(() if quick else (1_000_000,)))
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

    def keys(self, say: Say) -> Any:
        """Measure the listener; a worker with keys is among the runners."""
        return publish_keyed(self.rows // 2, self._sweep_rounds, say)

    def rabbitmq(self, say: Say) -> Any:
        return measure(
            rabbitmq.RabbitMQStage(), rabbitmq.CONTENDERS, Rows(self.rows // 2), self._sweep_rounds, say
        )

    def isolation(self, say: Say) -> Any:
        return time_beside_a_full_queue(1_000, self._seconds, say)

    def failing_key(self, say: Say) -> Any:
        return time_beside_a_failing_key(200, self._seconds, say)

    def memory(self, say: Say) -> Any:
        peak = peak_by_transaction(PostgresStage(), self._memory_sizes, say)
        return {"peak": peak, "idle": idle_share(self._seconds * 2, say)}

    def workers(self, say: Say) -> Any:
        return work(2_000 if self.quick else 10_000, say)

    def runners(self, say: Say) -> Any:
        return race(3_000 if self.quick else 20_000, self.rounds, say)

    def messages(self, say: Say) -> Any:
        return notify(100 if self.quick else 10_000, say)

    def rate_limited(self, say: Say) -> Any:
        return wait_behind_rates((20, 100) if self.quick else (100, 10_000), self._seconds, say)

    def grouping(self, say: Say) -> Any:
        return group(say)

    def on_binlog(self, database: str, part: str, say: Say) -> Any:
        """Measure one of `_BINLOG_PARTS` on MySQL or MariaDB."""
        if part == "memory":
            return binlog.peak(database, self._memory_sizes, say)
        return binlog.compare(database, self.rows, self.rounds, say)


_DATABASES = ("postgresql", *binlog.DATABASES)
_BINLOG_PARTS = ("throughput", "memory")
_PARTS = (
    "throughput",
    "width",
    "transactions",
    "keys",
    "rabbitmq",
    "latency",
    "memory",
    "grouping",
    "isolation",
    "failing_key",
    "workers",
    "runners",
    "messages",
    "rate_limited",
)


def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short runs, to check that everything works.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of runs of each contender.")] = None,
    database: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(_DATABASES)}; repeatable; default: all.")
    ] = None,
    only: Annotated[str, typer.Option(help=f"Any of {','.join(_PARTS)}.")] = ",".join(_PARTS),
    output: Annotated[Path, typer.Option(help="The directory for benchmarks.md.")] = _DOCS,
) -> None:
    """Measure, and write benchmarks.md with its charts. On MySQL and MariaDB: only throughput and memory."""
    plan = _Plan(quick=quick, rounds=rounds)
    known = output / "benchmarks" / "results.json"
    results = json.loads(known.read_text()) if known.exists() else {}
    parts = _some(only.split(","), _PARTS, "--only")
    for each in _some(database or _DATABASES, _DATABASES, "--database"):
        for part in parts:
            if each != "postgresql" and part not in _BINLOG_PARTS:
                continue
            typer.echo(f"--- {each}: {part}")
            _measure(plan, each, part, results)
            report.keep(results, output)
    missing = [part for part in _PARTS if part not in results]
    if missing:
        typer.echo(f"no page written, because these parts are not measured yet: {', '.join(missing)}")
        return
    report.write(results, output)
    typer.echo(f"written: {output / 'benchmarks.md'}")


def _some(wanted: Sequence[str], known: Sequence[str], option: str) -> Sequence[str]:
    for each in wanted:
        if each not in known:
            raise typer.BadParameter(f"{each!r} is not one of {', '.join(known)}", param_hint=option)
    return wanted


def _measure(plan: _Plan, database: str, part: str, results: dict[str, Any]) -> None:
    if database == "postgresql":
        load = os.getloadavg()[0]
        results[part] = getattr(plan, part)(typer.echo)
        if part in {"runners", "messages", "rate_limited"}:
            results["about_workers"] = {"load": round(load, 1), "cores": os.cpu_count(), "date": _today()}
        if part == "throughput" or "about" not in results:
            results["about"] = _about(plan)
        return
    of_server = results.setdefault(database, {})
    of_server[part] = plan.on_binlog(database, part, typer.echo)
    if part == "throughput" or "about" not in of_server:
        of_server["about"] = {**_circumstances(plan), "version": binlog.version(database)}


def _about(plan: _Plan) -> dict[str, Any]:
    with PostgresStage() as stage:
        return {**_circumstances(plan), "postgres": stage.version}


def _circumstances(plan: _Plan) -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, Python {platform.python_version()}",
        "date": _today(),
        "rows": plan.rows,
        "rounds": plan.rounds,
        "quick": plan.quick,
    }


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
