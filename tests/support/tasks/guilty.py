"""A task that takes its whole worker along, as one that eats all memory does."""

from __future__ import annotations

import os
import signal

from celery import shared_task

from cdc_tasks.worker import poison as suspects

__all__ = ["kills_all"]

suspects.MOST_LOSSES = 1


@shared_task(name="guilty.kills_all")
def kills_all() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)
