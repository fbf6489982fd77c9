"""The Redis at CACHE_URL: one client per process, and errors that say whether a retry may help."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import redis
from redis.backoff import EqualJitterBackoff
from redis.retry import Retry

from cdc_tasks.retry import TryAgain
from cdc_tasks.settings import RedisSettings, load

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CacheAwayError", "client", "close_idle", "errors_translated"]


class CacheAwayError(TryAgain):
    """The Redis of the master cache did not answer."""


@cache
def client() -> redis.Redis:
    """Return this process's client, which threads may share and which works after a fork."""
    return redis.Redis.from_url(
        load(RedisSettings).cache_url.get_secret_value(),
        socket_timeout=5,
        socket_connect_timeout=5,
        health_check_interval=15,
        # All our commands and scripts are idempotent, so they are repeated after the connection broke.
        retry=Retry(EqualJitterBackoff(base=0.1, cap=1), retries=3),
    )


def close_idle() -> None:
    """Close this process's connections that nobody uses now; the next command opens one again."""
    client().connection_pool.disconnect(inuse_connections=False)


@contextmanager
def errors_translated() -> Iterator[None]:
    """Raise CacheAwayError for temporary errors: no connection, loading, a read-only replica, memory full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError) as error:
        raise CacheAwayError(f"Redis at CACHE_URL did not take the command: {error}") from error
