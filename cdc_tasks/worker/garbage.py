"""A full garbage collection does not stop a worker for a tenth of a second.

Python's collector looks through everything now and then. In a worker that is mostly its modules, which stay until its
end. In the main process no task starts meanwhile. In a process of the pool it also writes to the memory that it shares
with the others. So what is there at the start is left out (`gc.freeze`, which takes no memory and no time).
"""

from __future__ import annotations

import gc
from typing import Any

from celery import signals

__all__ = ["leave_out_what_is_there"]


@signals.worker_ready.connect
@signals.worker_process_init.connect
def leave_out_what_is_there(**_: Any) -> None:
    """Let the collector of this process look only at what is made from now on."""
    gc.freeze()
