"""Tasks that note when they begin and end, and that fail as they are told."""

from __future__ import annotations

import os
import random
import time
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
    if how == "held up" and not redis.exists("mended"):
        raise ValueError(number)
    time.sleep(seconds)
    redis.rpush("noted", f"end {number}")


@shared_task(name="keyed.run", max_retries=1_000)
def run(key: str, number: int) -> None:
    """Fail once in fifty runs; what it notes is in a Redis that no test kills."""
    redis, this = cache.client(), uuid4().hex
    redis.rpush("runs", f"begin {key} {number} {this}")
    time.sleep(random.uniform(0, 0.005))
    if random.random() < 0.02:
        redis.rpush("runs", f"fail {key} {number} {this}")
        raise TryAgain("not now", after=0.2)
    redis.pipeline().rpush("runs", f"end {key} {number} {this}").sadd("done", number).execute()
