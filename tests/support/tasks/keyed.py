"""Tasks that record when they begin and end, and that fail on demand."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import shared_task

from cdc_tasks import TryAgain, cache

if TYPE_CHECKING:
    from celery import Task

__all__ = ["note", "run"]


@shared_task(name="keyed.note", bind=True)
def note(self: Task[Any, Any], number: int, how: str = "well", seconds: float = 0.0) -> None:
    redis = cache.client()
    redis.rpush("noted", f"begin {number}")
    if how == "killed" and not redis.getset("was killed", 1):
        redis.set("pid", os.getpid())
        time.sleep(60)
    if how == "retried" and self.request.retries == 0:
        raise TryAgain("not now", after=0.5)
    if how == "never":
        raise TryAgain("not now, nor later", after=0.05)
    if how == "held up" and not redis.exists("fixed"):
        raise ValueError(number)
    time.sleep(seconds)
    redis.rpush("noted", f"end {number}")


@shared_task(name="keyed.run", max_retries=1_000)
def run(key: str, number: int) -> None:
    """Fail once in fifty runs; record each run in a file (`tests/acceptance/key_notes.py`)."""
    file, process = _notes_of(os.getpid())
    this = f"{key} {number} {process}.{next(_runs)}"
    os.write(file, f"begin {this}\n".encode())
    time.sleep(random.uniform(0, 0.003))
    if random.random() < 0.02:
        os.write(file, f"fail {this}\n".encode())
        raise TryAgain("not now", after=0.2)
    os.write(file, f"end {this}\n".encode())


_runs = count(1)


@lru_cache(maxsize=1)
def _notes_of(_pid: int) -> tuple[int, str]:
    """Return the file's descriptor, and a unique name for this process."""
    random.seed()  # otherwise all processes of a worker would get the same random numbers
    return os.open(os.environ["KEYED_NOTES"], os.O_WRONLY | os.O_APPEND), uuid4().hex[:8]
