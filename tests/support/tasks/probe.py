"""Tasks that record in Redis that they ran: an example of a user's own task module."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import redis
from celery import shared_task

from cdc_tasks.retry import TryAgain

if TYPE_CHECKING:
    from celery import Task

__all__ = ["awaits", "ran", "ran_later", "waits"]


def _redis() -> redis.Redis:
    return redis.Redis.from_url(os.environ["CACHE_URL"])


def _note(task: Task[Any, Any], argument: Any) -> None:
    request = task.request
    record = {
        "id": request.id,
        "argument": argument,
        "retries": request.retries,
        "queue": request.delivery_info["routing_key"],
        "priority": request.delivery_info["priority"],
    }
    with _redis() as client:
        client.rpush("ran", json.dumps(record))


@shared_task(bind=True, name="probe.ran")
def ran(self: Task[Any, Any], argument: Any) -> None:
    _note(self, argument)


@shared_task(bind=True, name="probe.awaits")
async def awaits(self: Task[Any, Any], argument: Any) -> None:
    """Fail at the first attempt, like a service that is down."""
    await asyncio.sleep(0)
    if not self.request.retries:
        raise TryAgain("The service is away.", after=0.1)
    _note(self, argument)


@shared_task(bind=True, name="probe.ran_later", max_retries=2)
def ran_later(self: Task[Any, Any], argument: Any) -> None:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    _note(self, argument)


@shared_task(bind=True, name="probe.waits")
def waits(self: Task[Any, Any], argument: Any) -> None:
    with _redis() as client:
        client.blpop(["go"], timeout=30)
    _note(self, argument)
