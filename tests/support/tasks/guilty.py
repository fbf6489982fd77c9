"""A task that kills its whole worker, like one that uses up all memory."""

from __future__ import annotations

import os
import signal

from celery import shared_task

from cdc_tasks.worker import poison

__all__ = ["kills_all"]

poison.MAX_WORKER_CRASHES = 1


@shared_task(name="guilty.kills_all")
def kills_all() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)
