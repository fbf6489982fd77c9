"""A pause because of CDC_MAX_QUEUE, as `status` learns of it: a note in Redis that ends with the listener."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Final, NamedTuple, Self

from listener.core.publisher import BrokerAwayError, BrokerError
from listener.publish.redis.connection import RedisConnection

__all__ = ["Pause", "PauseNote", "pause_key"]

_LASTS_MS: Final = "10000"  # until Redis forgets a note that nobody renews
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
        """Read what a `PauseNote` wrote."""
        return cls(**json.loads(note))


class PauseNote:
    """The note of one pause. A Redis that does not take it is no reason to end the pause, or the listener."""

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
        """Take the note away: the pause is over."""
        self._send("DEL", self._key)

    def _send(self, *command: str) -> None:
        with suppress(BrokerAwayError, BrokerError):
            self._redis.send([command])
