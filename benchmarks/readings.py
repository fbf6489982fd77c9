"""Processor time and memory of a process, from `proc(5)`.

`python -m benchmarks.readings PID…` prints them for each process with its children.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cpu_seconds", "group_cpu_seconds", "peak_memory", "proportional_memory"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_memory(pid: int) -> float:
    """Return the peak resident memory of a process in MB; raises ProcessLookupError if it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)


def group_cpu_seconds(leader: int) -> float:
    """Return the processor time so far of the process group of `leader`, with the processes in it that have ended."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == leader:
            total += sum(map(int, fields[11:15]))
    return total / _TICKS


def proportional_memory(parent: int) -> float:
    """Return the proportional set size in MB of a process and its children: shared pages count once."""
    sizes = (_pss(pid) for pid in (parent, *_children(parent)))
    return sum(sizes) * 1024 / 1e6


def _children(parent: int) -> list[int]:
    return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    for given in map(int, sys.argv[1:]):
        seconds = sum(cpu_seconds(each) for each in (given, *_children(given)))
        print(f"{given}: {proportional_memory(given):.0f} MB, {seconds:.2f} s of a processor")  # noqa: T201  # its result
