"""The pause while a queue is too long: further changes stay in the database's log, on its disk.

`status` reads it from a note in Redis, which expires if the listener no longer runs.
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

__all__ = ["Load", "Pause", "QueueLimit", "pause_key"]

log = structlog.get_logger()

_LASTS_MS: Final = "10000"  # until Redis drops a note that is not renewed
_RENEW_EVERY: Final = 2.0  # seconds


def pause_key(prefix: str) -> str:
    """Return the Redis key of the note."""
    return f"{prefix}:paused"


class Load(NamedTuple):
    """The number of messages in the queue that is closest to its limit."""

    length: int = 0
    limit: int | None = None  # None: no limit
    setting: str = "CDC_MAX_QUEUE"  # defines the limit

    @property
    def is_too_much(self) -> bool:
        return self.limit is not None and self.length > self.limit


class Pause(NamedTuple):
    """The listener waits until its longest queue is short enough again."""

    since: str
    longest_queue: int
    max_queue: int
    setting: str = "CDC_MAX_QUEUE"  # defines `max_queue`

    @classmethod
    def parse(cls, note: bytes) -> Self:
        """Parse a note of `_Note`."""
        return cls(**json.loads(note))


class QueueLimit:
    """Pauses the listener while too many messages wait at the broker."""

    def __init__(
        self, max_queue: int | None, redis: RedisConnection, key: str, retry: Retry, *, look_every: float
    ) -> None:
        """Store the note in `redis` under `key`; `look_every` is in seconds."""
        self.max_queue = max_queue
        self._redis = redis
        self._key = key
        self._retry = retry
        self._look_every = look_every

    def wait_for_room(self, load: Load, load_now: Callable[[], Load]) -> None:
        """Wait while the load is too high. Raise StoppedError."""
        if not load.is_too_much:
            return
        log.warning("paused", longest_queue=load.length, limit=load.limit, setting=load.setting)
        note = _Note(self._redis, self._key)
        while load.is_too_much:
            note.renew(load)
            self._retry.sleep(self._look_every)
            load = self._retry.call(load_now)
        note.remove()
        log.info("resumed")


class _Note:
    """The note of one pause. If Redis does not accept it, the pause and the listener continue."""

    def __init__(self, redis: RedisConnection, key: str) -> None:
        self._redis = redis
        self._key = key
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewed_at: float | None = None

    def renew(self, load: Load) -> None:
        """Write the note if it is due."""
        now = monotonic()
        if self._renewed_at is None or now - self._renewed_at >= _RENEW_EVERY:
            self._renewed_at = now
            pause = Pause(self._since, load.length, load.limit or 0, load.setting)
            self._send("SET", self._key, json.dumps(pause._asdict()), "PX", _LASTS_MS)

    def remove(self) -> None:
        """Remove the note: the pause is over."""
        self._send("DEL", self._key)

    def _send(self, *command: str) -> None:
        with suppress(BrokerAwayError, BrokerError):
            self._redis.send([command])
