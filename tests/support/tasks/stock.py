"""Another Celery application: Celery's own settings and transport, on a shared Redis."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

app = Celery("house", broker=os.environ["CELERY_BROKER_URL"])
app.conf.task_default_queue = "house"
app.conf.task_acks_late = True
app.conf.broker_transport_options = {"visibility_timeout": 12 * 3600}  # it puts nothing back within a test


@app.task(name="house.note")
def note(number: int, seconds: float = 0) -> None:
    client = redis.Redis.from_url(os.environ["CACHE_URL"])
    client.hincrby("house begun", str(number), 1)
    time.sleep(seconds)
    client.hincrby("house done", str(number), 1)
