"""A worker that is killed after it has kept a malformed message, and before it acknowledges it."""

from __future__ import annotations

import os
import signal
from typing import Any

from cdc_tasks.broker.redis import transport as redis_transport
from cdc_tasks.dead_letters import malformed_messages
from cdc_tasks.worker import consumer

__all__: list[str] = []


def _keep_and_die(*args: Any, **kwargs: Any) -> None:
    malformed_messages.keep_malformed(*args, **kwargs)
    os.killpg(0, signal.SIGKILL)  # the pool's processes too


consumer.keep_malformed = redis_transport.keep_malformed = _keep_and_die
