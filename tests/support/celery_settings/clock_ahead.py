"""For a worker whose clock is an hour ahead when it sends."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from celery import shared_task

from cdc_tasks.celery import app
from tests.support.tasks.killed import note

__all__ = ["note", "send_on"]

_now = app.now


def _an_hour_ahead(*arguments: Any) -> datetime:
    return _now(*arguments) + timedelta(hours=1)


app.now = _an_hour_ahead  # type: ignore[method-assign]


@shared_task(name="ahead.send_on")
def send_on(number: int) -> None:
    note.apply_async([number], countdown=0.5, queue="cdc_bulk")
