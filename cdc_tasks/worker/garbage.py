"""Keeps full garbage collections short: otherwise each would stop a worker for a tenth of a second.

Python's collector sometimes goes through all objects. In a worker these are mostly its modules, which stay until it
ends. In the main process no task starts meanwhile. In a process of the pool it also writes to the memory that it shares
with the others. So the objects that exist at start-up are left out (`gc.freeze`, which takes no memory and no time).
"""

from __future__ import annotations

import gc
from typing import Any

from celery import signals

__all__ = ["leave_out_what_is_there"]


@signals.worker_ready.connect
@signals.worker_process_init.connect
def leave_out_what_is_there(**_: Any) -> None:
    """Make the collector of this process ignore all existing objects."""
    gc.freeze()
