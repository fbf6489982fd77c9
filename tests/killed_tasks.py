"""Tasks whose effect can be counted, for workers that are killed."""

from __future__ import annotations

import time

from celery import shared_task

from cdc_tasks import cache, sent, suspects

__all__ = ["note", "note_slowly"]

suspects.MOST_LOSSES = 1000  # here it is never the task that kills its worker
sent._HELD = 3  # seconds: nobody waits a minute to learn that a worker which was sending is dead


@shared_task(name="killed.note")
def note(number: int) -> None:
    cache.client().hincrby("noted", str(number), 1)


@shared_task(name="killed.note_slowly")
def note_slowly(number: int) -> None:
    cache.client().rpush("begun", number)
    time.sleep(1.5)
    cache.client().hincrby("noted", str(number), 1)
