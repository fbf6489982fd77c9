"""How many changes the listeners have parked: theirs to list and replay, but one place should tell of all."""

from __future__ import annotations

import redis

from cdc_tasks import cache

__all__ = ["counts"]


def counts() -> dict[str, int]:
    """Return CDC_NAME: changes, from the broker where it is Redis, else from CACHE_URL; raises CacheAwayError."""
    from cdc_tasks.celery import app

    with app.connection_for_read() as connection, cache.errors_translated():
        if connection.transport.driver_type != "redis":
            return _counts(cache.client())
        # Not waited for: who asks is a person, or Flower.
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
        )
        with connection.channel() as channel:  # to the master, where Sentinel names it
            pool = channel.pool  # type: ignore[attr-defined]  # what kombu's channels to Redis have
            return _counts(redis.Redis(connection_pool=pool))


def _counts(client: redis.Redis) -> dict[str, int]:
    """Look for `cdc:<CDC_NAME>:parked`, behind the prefix that Celery's broker may have."""
    keys = sorted(client.scan_iter("*cdc:*:parked", count=1000, _type="hash"))
    return {key.decode().split(":")[-2]: int(client.hlen(key)) for key in keys}
