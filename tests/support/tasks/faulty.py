"""Tasks that fail in each way: with an error, with their worker, forever."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from cdc_tasks import cache
from cdc_tasks.notify.send_errors import UnavailableError

__all__ = ["counts", "fails", "hangs", "kills", "retries_out"]


def _note(name: str) -> None:
    cache.client().incr(name)


@shared_task(name="faulty.counts")
def counts(key: str, cured: bool = False) -> None:
    """Count, but only if Redis has the hint."""
    if not cured and not cache.client().exists("hint"):
        raise ValueError("at postgresql://someone:the-secret-part@db/ there is no hint")
    _note(key)


@shared_task(name="faulty.fails")
def fails(row: dict[str, str]) -> None:
    raise KeyError(row["missing"])


@shared_task(name="faulty.retries_out", max_retries=2)
def retries_out(after: float = 0.1) -> None:
    raise UnavailableError("the service is away", after=after)


@shared_task(name="faulty.kills", default_retry_delay=0.1)
def kills() -> None:
    _note("killed")
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="faulty.hangs", soft_time_limit=0.5, time_limit=1)
def hangs() -> None:
    """Ignore the soft time limit."""
    while True:
        with contextlib.suppress(SoftTimeLimitExceeded):
            time.sleep(60)
