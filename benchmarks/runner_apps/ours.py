"""The task for our worker, which CDC_TASK_MODULES names."""

from __future__ import annotations

from celery import shared_task

from benchmarks.runner_apps.record import note

__all__ = ["nothing"]


@shared_task(name="bench.nothing")
def nothing(_payload: object) -> None:
    note()
