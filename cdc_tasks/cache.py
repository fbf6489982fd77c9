"""The Redis of CACHE_URL: one client per process, whose errors say whether trying again may help."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from cdc_tasks.retry import TryAgain
from cdc_tasks.settings import RedisSettings, load

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CacheAwayError", "client", "errors_translated"]


class CacheAwayError(TryAgain):
    """Redis, where the master cache is, did not answer."""


@cache
def client() -> redis.Redis:
    """Return this process's client; safe in threads and after a fork."""
    return redis.Redis.from_url(
        load(RedisSettings).cache_url.get_secret_value(),
        socket_timeout=5,
        socket_connect_timeout=5,
        health_check_interval=15,
        # Every command and script of ours may run twice: a connection that broke is no reason to fail.
        retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=1), retries=3),
    )


@contextmanager
def errors_translated() -> Iterator[None]:
    """Raise CacheAwayError for what heals: no connection, still loading, a replica in the master's place, full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError) as error:
        raise CacheAwayError(f"Redis at CACHE_URL did not take it: {error}") from error
