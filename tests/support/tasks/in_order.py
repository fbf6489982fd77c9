"""Tasks with a key that record when they begin and end, and fail on demand."""

from __future__ import annotations

import os
import signal
import time

from celery import shared_task

from cdc_tasks import cache
from cdc_tasks.notify.send_errors import UnavailableError

__all__ = ["LOG", "breaks", "dies_twice", "notes"]

LOG = "in-order"  # a list: "begins key number", "ends …", "waits …", "fails …"


@shared_task(name="in_order.dies_twice", default_retry_delay=1)
def dies_twice(key: str, number: int) -> None:
    """Hang until the worker is killed; at the second attempt kill only this process; succeed at the third."""
    client = cache.client()
    tries = client.incr(f"{LOG}:{key}:{number}")  # first: who reads the log may kill the worker at once
    client.rpush(LOG, f"begins {key} {number}")
    if tries == 1:
        time.sleep(600)
    if tries == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    client.rpush(LOG, f"ends {key} {number}")


@shared_task(name="in_order.notes", max_retries=1_000)
def notes(key: str, number: int, fails: int = 0, takes: float = 0.01, until: str = "") -> None:
    """Fail `fails` times, or until Redis has the key `until`; it is retried after a second."""
    client = cache.client()
    client.rpush(LOG, f"begins {key} {number}")
    time.sleep(takes)
    if client.incr(f"{LOG}:{key}:{number}") <= fails or (until and not client.exists(until)):
        client.rpush(LOG, f"waits {key} {number}")
        raise UnavailableError("not yet", after=0.1)
    client.rpush(LOG, f"ends {key} {number}")


@shared_task(name="in_order.breaks")
def breaks(key: str, number: int) -> None:
    """Give up at once, unless the cause is fixed."""
    client = cache.client()
    client.rpush(LOG, f"begins {key} {number}")
    if not client.exists("cured"):
        client.rpush(LOG, f"fails {key} {number}")
        raise ValueError("broken")
    client.rpush(LOG, f"ends {key} {number}")
