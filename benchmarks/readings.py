"""Processor time and memory of a process, from `proc(5)`."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_seconds", "group_cpu_seconds", "peak_memory"]

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
