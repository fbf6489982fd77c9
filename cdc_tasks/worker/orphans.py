"""Ensures that no process of the pool outlives its worker.

If a worker's main process is killed, its messages go to other workers. A process of its pool would continue its task
meanwhile, and the task would run twice at the same time. So the kernel kills such a process. This is for Linux only: on
other systems a process ends after its task.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from contextlib import suppress
from typing import Any, Final

from celery import signals

__all__ = ["die_with_the_worker"]

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


@signals.worker_process_init.connect
def die_with_the_worker(**_: Any) -> None:
    """Make the kernel kill this process when the worker's main process ends."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
