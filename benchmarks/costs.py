"""The cost of running cdc-tasks: memory of workers and listeners, and the processor time of their start.

`python -m benchmarks.costs`: each number is the median of three starts. Memory is the proportional set size, of a
worker with its two processes. Memory does not depend on what else runs on the machine; wall clocks would.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Final

from benchmarks.postgres_stage import PostgresStage
from benchmarks.readings import cpu_seconds, proportional_memory
from harness.worker import Worker

_SHOP: Final = "tests.support.tasks.shop"
_STARTS: Final = 3


def main() -> None:
    """Measure, and print a line for each."""
    for words in ("listener --help", "listener --version", "cdc_tasks --help"):
        _say(f"python -m {words}", [(0, _seconds_of(words)) for _ in range(_STARTS)])
    with PostgresStage() as stage:
        shop = {"SHOP_BROKER": stage.valkey.url, "SHOP_NOTES": stage.valkey.url_of(1)}
        ways = {
            "listener, light": lambda: _listener(stage, {}),
            "listener, -A": lambda: _listener(stage, {**shop, "CDC_APP": _SHOP}),
            "worker without install": lambda: _worker({**shop, "SHOP_IS_STOCK": "yes"}),
            "worker with install": lambda: _worker(shop),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(_STARTS):  # in turn, so that a busy minute affects all of them
            for name, start in ways.items():
                found[name].append(start())
    for name, readings in found.items():
        _say(name, readings)


def _seconds_of(words: str) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *words.split()], check=True, stdout=subprocess.DEVNULL)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _listener(stage: PostgresStage, more: Mapping[str, str]) -> tuple[float, float]:
    with stage.listener("of_a_shop", **more) as listener:
        listener.wait_for("streaming")
        found = _readings(listener.process.pid)
        listener.stop()
    return found


def _worker(environment: Mapping[str, str]) -> tuple[float, float]:
    with Worker(environment, application=_SHOP) as worker:
        return _readings(worker.process.pid)


def _readings(pid: int) -> tuple[float, float]:
    return proportional_memory(pid), cpu_seconds(pid)


def _say(name: str, readings: list[tuple[float, float]]) -> None:
    memory, seconds = (median(each) for each in zip(*readings, strict=True))
    shown = f"{memory:5.0f} MB, " if memory else " " * 10
    print(f"{name:24} {shown}{seconds:.2f} s of a processor")  # noqa: T201  # its result


if __name__ == "__main__":
    main()
