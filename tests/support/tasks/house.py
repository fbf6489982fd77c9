"""Another team's Celery application on the same broker: Celery's own settings, and so its default queue, `celery`."""

from __future__ import annotations

import os

import redis
from celery import Celery

app = Celery("house", broker=os.environ["CELERY_BROKER_URL"])


@app.task(name="house.note")
def note(number: int) -> None:
    redis.Redis.from_url(os.environ["CACHE_URL"]).hincrby("house done", str(number), 1)
