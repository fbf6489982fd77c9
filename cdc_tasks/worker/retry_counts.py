"""Counts retries in Redis, with a separate round trip, because a retry itself only goes to the broker.

The time limits are short. Counts that Redis does not accept are kept in the process, and sent with a later one.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from time import monotonic
from typing import Final

import redis

from cdc_tasks import cache
from cdc_tasks.errors import CDCError
from cdc_tasks.totals import COUNT, TOTALS, field

__all__ = ["count_retry"]

_TIMEOUT: Final = 0.5  # seconds
_AGAIN_AFTER: Final = 10.0  # seconds, after Redis did not answer

_ADD: Final = f"""{COUNT}
for i = 1, #ARGV, 2 do count(KEYS[1], ARGV[i], ARGV[i + 1]) end
"""


class _RetryCounts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._due_at = 0.0
        self._client: redis.Redis | None = None

    def add(self, task: str) -> None:
        with self._lock:
            self._waiting[field("retried", task)] += 1
            if monotonic() >= self._due_at:
                self._try_to_send()

    def _try_to_send(self) -> None:
        words = [word for pair in self._waiting.items() for word in pair]
        try:
            with cache.errors_translated():
                self._client = self._client or _client()
                self._client.eval(_ADD, 1, TOTALS, *words)
        except (CDCError, redis.RedisError, OSError, ValueError):
            self._due_at = monotonic() + _AGAIN_AFTER
        else:
            self._waiting.clear()


def _client() -> redis.Redis:
    """Return a client that does not retry."""
    return cache.make_client(retry=None, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT)


_counts = _RetryCounts()


def _forget() -> None:
    """Reset in a forked process: the counts are the parent's, and another thread may hold the lock."""
    global _counts  # noqa: PLW0603 - one for each process
    _counts = _RetryCounts()


os.register_at_fork(after_in_child=_forget)


def count_retry(task: str) -> None:
    """Count one retry, now or with a later one. Never raises, and takes at most a second."""
    _counts.add(task)
