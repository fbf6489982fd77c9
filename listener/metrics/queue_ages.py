"""How long the oldest message of a queue has waited, estimated from samples every few seconds."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from time import time
from typing import Final

__all__ = ["QueueAges"]

# The end of a task's id: when the change was committed in microseconds, its number, and the route.
_COMMITTED: Final = re.compile(r"-([0-9A-F]{12,16})-\d+(?:\+\d+)?(?:-[0-9a-f]{8})?$")
_KEPT: Final = 1_000  # remembered samples per queue


class QueueAges:
    """Remembers earlier samples. A queue that was empty once has only newer messages."""

    def __init__(self, epoch: float, clock: Callable[[], float] = time) -> None:
        """`epoch` is what the times in ids count from, in seconds since 1970."""
        self._epoch = epoch
        self._clock = clock
        self._empty_at: dict[str, float] = {}
        self._heads: dict[
            str, tuple[str, float]
        ] = {}  # queue -> its oldest message's id, and since when it is that
        self._published: dict[str, deque[tuple[float, int]]] = {}  # queue -> when how many had been published

    def of_head(self, queue: str, length: int, head: str | None) -> float:
        """Return the age from the task id of the oldest message; None if the id has no time."""
        now = self._clock()
        if not length or head is None:
            self._empty_at[queue] = now
            self._heads.pop(queue, None)
            return 0.0
        seen = self._heads.get(queue)
        if seen is None or seen[0] != head:
            seen = self._heads[queue] = head, now
        committed = self._committed_at(head)
        since = seen[1] if committed is None else min(committed, seen[1])
        return max(0.0, now - max(since, self._empty_at.get(queue, 0.0)))

    def of_length(self, queue: str, length: int, published: int) -> float:
        """Return the age from the number of published messages, in this sample and earlier ones."""
        now = self._clock()
        looks = self._published.setdefault(queue, deque(maxlen=_KEPT))
        if not length:
            looks.clear()
        looks.append((now, published))
        if not length:
            return 0.0
        oldest = published - length  # the number that had been published before it
        since = next((at for at, number in reversed(looks) if number <= oldest), looks[0][0])
        return max(0.0, now - since)

    def _committed_at(self, task_id: str) -> float | None:
        found = _COMMITTED.search(task_id)
        return None if found is None else int(found[1], 16) / 1e6 + self._epoch
