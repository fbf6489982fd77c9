"""The pause while a queue is longer than CDC_MAX_QUEUE: what waits stays in the database's log, on its disk.

`status` learns of it from a note in Redis, which expires when the listener is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Final, NamedTuple, Self

import structlog

from listener.core.publisher import BrokerAwayError, BrokerError
from listener.core.retry import Retry
from listener.publish.redis.connection import RedisConnection

__all__ = ["Pause", "QueueLimit", "pause_key"]

log = structlog.get_logger()

_LASTS_MS: Final = "10000"  # until Redis drops a note that is not renewed
_RENEW_EVERY: Final = 2.0  # seconds


def pause_key(prefix: str) -> str:
    """Return the Redis key of the note."""
    return f"{prefix}:paused"


class Pause(NamedTuple):
    """The listener waits until its longest queue is short enough again."""

    since: str
    longest_queue: int
    max_queue: int

    @classmethod
    def parse(cls, note: bytes) -> Self:
        """Read what `_Note` wrote."""
        return cls(**json.loads(note))


class QueueLimit:
    """Pauses the listener while a queue has more than `max_queue` messages; None: never."""

    def __init__(
        self, max_queue: int | None, redis: RedisConnection, key: str, retry: Retry, *, look_every: float
    ) -> None:
        """`redis` and `key` are where the note goes; `look_every` in seconds."""
        self.max_queue = max_queue
        self._redis = redis
        self._key = key
        self._retry = retry
        self._look_every = look_every

    def wait_for_room(self, longest: int, longest_now: Callable[[], int]) -> None:
        """Wait while the longest queue, which has `longest` messages, is too long; raises StoppedError."""
        limit = self.max_queue
        if limit is None or longest <= limit:
            return
        log.warning("paused", longest_queue=longest, cdc_max_queue=limit)
        note = _Note(self._redis, self._key, limit)
        while longest > limit:
            note.renew(longest)
            self._retry.sleep(self._look_every)
            longest = self._retry.call(longest_now)
        note.remove()
        log.info("resumed")


class _Note:
    """The note of one pause. If Redis does not take it, neither the pause nor the listener ends."""

    def __init__(self, redis: RedisConnection, key: str, max_queue: int) -> None:
        self._redis = redis
        self._key = key
        self._max_queue = max_queue
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewed_at: float | None = None

    def renew(self, longest_queue: int) -> None:
        """Write the note, if that is due."""
        now = monotonic()
        if self._renewed_at is None or now - self._renewed_at >= _RENEW_EVERY:
            self._renewed_at = now
            pause = Pause(self._since, longest_queue, self._max_queue)
            self._send("SET", self._key, json.dumps(pause._asdict()), "PX", _LASTS_MS)

    def remove(self) -> None:
        """Remove the note: the pause is over."""
        self._send("DEL", self._key)

    def _send(self, *command: str) -> None:
        with suppress(BrokerAwayError, BrokerError):
            self._redis.send([command])
