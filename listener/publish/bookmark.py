"""The listener's position, stored outside the broker, which may lose its data.

Unlike a replication slot, a binlog keeps no position for us. Without the bookmark, a source with lost checkpoint looks
like one read for the first time. The bookmark may be a second old: the listener recovers from it, but it is not a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Final

import structlog

from cdc_tasks.variables import as_set
from listener.core.publisher import BrokerAwayError, BrokerError
from listener.core.replay_window import ReplayWindow
from listener.core.retry import Retry
from listener.publish.redis.connection import RedisConnection

__all__ = ["Bookmark", "bookmark_key", "read_bookmark"]

log = structlog.get_logger()

_EVERY: Final = 1.0  # seconds between two writes
_RETRY_AFTER: Final = 30.0  # seconds after Redis failed to store one


class Bookmark:
    """The bookmark in the Redis of CACHE_URL, and in memory."""

    def __init__(
        self, cache_url: str, *, name: str, replay_window: float = 0.0, clock: Callable[[], float] = monotonic
    ) -> None:
        """`name` is CDC_NAME; `replay_window` in seconds: the bookmark stays that far behind."""
        self._redis = RedisConnection.of_cache(cache_url)
        self._retry = Retry("cache")
        self._clock = clock
        self._window = ReplayWindow[str | None](replay_window, start=None, clock=clock)
        self._noted: str | None = None
        self._next = 0.0  # when the next write is due
        self._source = ""
        self.key = bookmark_key(name)

    def read(self, source: str, *, wait: bool) -> str | None:
        """Return the position on a source of this kind; None if there is none.

        `wait`: wait while Redis is unavailable, because only Redis may have it. Raise StoppedError, BrokerError.
        """
        self._source = source
        found = self._retry.call(self._ask) if wait else self._ask_once()
        self._noted = found
        self._window.restart(found or self._window.position)
        return self._window.position

    def start_at(self, position: str) -> None:
        """Note that reading begins at `position`, and drop the previous bookmark."""
        self._window.restart(position)
        self._next = 0.0

    def published(self, position: str) -> None:
        """Note the position, in Redis at most once a second. Does not wait if Redis is unavailable."""
        if self._window.position is None:
            self._window.restart(position)  # the first position
        self._window.published(position)
        if self._clock() >= self._next and self._window.position != self._noted:
            self._write()

    def stop(self) -> None:
        """Make a waiting `read` raise StoppedError soon."""
        self._retry.stop()

    def close(self) -> None:
        """Write a pending bookmark, and close the connection."""
        if self._window.position not in {None, self._noted} and self._redis.is_open:
            self._write()
        self._redis.close()

    def _ask(self) -> str | None:
        position, source = _read(self._redis, self.key)
        return position if source == self._source else None

    def _ask_once(self) -> str | None:
        try:
            return self._ask()
        except (BrokerAwayError, BrokerError):
            return None  # `published` will log it

    def _write(self) -> None:
        position, now = self._window.position or "", datetime.now(UTC).isoformat()
        fields = ("position", position, "source", self._source, "at", now)
        try:
            self._redis.ask([("HSET", self.key, *fields)])
        except (BrokerAwayError, BrokerError) as error:
            self._next = self._clock() + _RETRY_AFTER
            log.warning(
                "bookmark_not_kept", reason=error.message, hint=as_set("Start the Redis of CACHE_URL.")
            )
        else:
            self._noted = position
            self._next = self._clock() + _EVERY


def bookmark_key(name: str) -> str:
    """Return the key of the bookmark in CACHE_URL; `name` is CDC_NAME."""
    return f"cdc:{name}:bookmark"


def read_bookmark(cache_url: str, name: str) -> str | None:
    """Return the noted position, for commands. Raise BrokerAwayError, BrokerError."""
    redis = RedisConnection.of_cache(cache_url)
    try:
        return _read(redis, bookmark_key(name))[0]
    finally:
        redis.close()


def _read(redis: RedisConnection, key: str) -> tuple[str | None, str | None]:
    """Return position and source."""
    ((position, source),) = redis.ask([("HMGET", key, "position", "source")])
    return position and position.decode(), source and source.decode()
