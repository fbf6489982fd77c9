"""A note in Redis, for `status`: the listener waits until sessions see a transaction.

It expires if the listener no longer runs.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import Final

from listener.core.publisher import BrokerAwayError, BrokerError
from listener.core.visibility import CommitWait
from listener.publish.redis.connection import RedisConnection

__all__ = ["CommitWaitNote", "commit_wait_key", "parse_commit_wait"]

_LASTS_MS: Final = "10000"  # until Redis drops a note that is not renewed
_RENEW_EVERY: Final = 2.0  # seconds


def commit_wait_key(prefix: str) -> str:
    """Return the Redis key of the note; `prefix` is that of the listener's keys."""
    return f"{prefix}:not_visible"


def parse_commit_wait(note: bytes) -> CommitWait:
    """Parse a note of `CommitWaitNote`."""
    return CommitWait(**json.loads(note))


class CommitWaitNote:
    """Keeps the note up to date. If Redis does not accept it, the wait and the listener continue."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint, and is used only here; `name` is CDC_NAME."""
        self._redis = redis
        self._key = commit_wait_key(redis.prefixed(f"cdc:{name}"))
        self._renewed_at: float | None = None  # None: there is no note

    def keep(self, wait: CommitWait | None) -> None:
        """Write the note of this wait if it is due, or remove it if there is no wait any more."""
        if wait is not None:
            now = monotonic()
            if self._renewed_at is None or now - self._renewed_at >= _RENEW_EVERY:
                self._renewed_at = now
                self._send("SET", self._key, json.dumps(asdict(wait)), "PX", _LASTS_MS)
        elif self._renewed_at is not None:
            self._renewed_at = None
            self._send("DEL", self._key)
            self._redis.close()

    def _send(self, *command: str) -> None:
        with suppress(BrokerAwayError, BrokerError):
            self._redis.send([command])
