"""Tasks that only record when they ran, and with how many rows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

from celery import shared_task, signals

from benchmarks.routes import KEYS
from cdc_tasks import TryAgain

__all__ = ["FAILS", "STARTS", "Note", "read_notes", "read_starts"]

FAILS = "BENCH_KEY_FAILS"  # set: the task of one key always fails
STARTS = "BENCH_STARTS"  # the path of a file for the start time of each cache refresh

_VARIABLE = "BENCH_NOTES"  # the file's path
_NOTE = Struct("=ddI")

Note = tuple[float, float, int]  # the times of the task and of its first row's commit, and the number of rows


if starts := os.environ.get(STARTS):

    @signals.task_prerun.connect
    def _note_start(task_id: str, task: Any, **_: Any) -> None:
        if task.name == "cdc_tasks.refresh_master_cache":
            with Path(starts).open("a") as file:
                file.write(f"{task_id} {time.time()}\n")


@shared_task(name="bench.row")
def row(change: Mapping[str, Any]) -> None:
    _note(change, 1)


@shared_task(name="bench.row_of_key")
def row_of_key(change: Mapping[str, Any]) -> None:
    """Fail if the environment demands it for this key; otherwise record when the task ran."""
    if change["after"]["id"] % KEYS != 0:
        _note(change, 1)
    elif os.environ.get(FAILS):
        raise TryAgain("This key's task always fails.", after=0.1)


@shared_task(name="bench.rows")
def rows(changes: Sequence[Mapping[str, Any]]) -> None:
    _note(changes[0], len(changes))


def read_notes(path: Path) -> list[Note]:
    """Return the records of all processes."""
    return list(_NOTE.iter_unpack(path.read_bytes()))


def read_starts(path: Path) -> dict[str, float]:
    """Return when each refresh of the cache began, by the task's id."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {task: float(at) for task, at in (line.split() for line in lines if line.endswith("\n"))}


def _note(change: Mapping[str, Any], count: int) -> None:
    now = time.time()
    committed = datetime.fromisoformat(change["committed_at"]).timestamp()
    os.write(_file(os.getpid()), _NOTE.pack(now, committed, count))


@cache
def _file(_process: int) -> int:
    return os.open(os.environ[_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
