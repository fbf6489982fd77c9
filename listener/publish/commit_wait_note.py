"""A note in Redis, for `status`: the listener waits until sessions see a transaction.

It expires when the listener is gone.
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
    """Read what `CommitWaitNote` wrote."""
    return CommitWait(**json.loads(note))


class CommitWaitNote:
    """Keeps the note as it is to be. If Redis does not take it, neither the wait nor the listener ends."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint, and is used by nobody else; `name` is CDC_NAME."""
        self._redis = redis
        self._key = commit_wait_key(redis.prefixed(f"cdc:{name}"))
        self._renewed_at: float | None = None  # None: there is no note

    def keep(self, wait: CommitWait | None) -> None:
        """Write the note of this wait if that is due, or remove it if there is no wait any more."""
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
