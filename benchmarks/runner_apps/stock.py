"""The task in a Celery application with Celery's own settings; BENCH_LATE: with late acknowledgement."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.runner_apps.record import note

__all__ = ["app"]

app = Celery("stock", broker=os.environ["CELERY_BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.task_acks_late = bool(os.environ.get("BENCH_LATE"))


@app.task(name="bench.nothing")
def nothing(_payload: object) -> None:
    note()
