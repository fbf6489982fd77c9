"""Tasks whose effect can be counted, for workers that are killed."""

from __future__ import annotations

import time

from celery import shared_task

from cdc_tasks import cache
from cdc_tasks.notify import delivery_log

__all__ = ["note", "note_slowly"]

delivery_log._LEASE = 8  # seconds: no test waits a minute for the lease of a dead worker


@shared_task(name="killed.note")
def note(number: int) -> None:
    cache.client().hincrby("begun to note", str(number), 1)
    time.sleep(0.01)  # a usual task takes time, and workers die in the middle of it
    cache.client().hincrby("noted", str(number), 1)


@shared_task(name="killed.note_slowly")
def note_slowly(number: int) -> None:
    cache.client().rpush("begun", number)
    time.sleep(1.5)
    cache.client().hincrby("noted", str(number), 1)
