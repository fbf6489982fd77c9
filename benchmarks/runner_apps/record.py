"""What the task does in each framework: record when it ran. Needs the standard library only."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from struct import Struct

__all__ = ["NOTES", "note", "read_times"]

NOTES = "BENCH_NOTES"  # the variable with the file's path
_TIME = Struct("=d")


def note() -> None:
    os.write(_file(os.getpid()), _TIME.pack(time.time()))


def read_times(path: Path) -> list[float]:
    """Return the recorded times of all processes, in order."""
    return sorted(time for (time,) in _TIME.iter_unpack(path.read_bytes())) if path.exists() else []


@cache
def _file(_process: int) -> int:
    return os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
