"""The numbers of parked changes, for people and for Prometheus; each listener lists and replays its own."""

from __future__ import annotations

import redis

from cdc_tasks import cache, environment
from cdc_tasks.installed import current_app

__all__ = ["counts"]


def counts() -> dict[str, int]:
    """Return the number for each CDC_NAME; raise CacheAwayError if Redis is down.

    The changes are in the broker if it is Redis, else in CACHE_URL.
    """
    broker = environment.set_by("CELERY_BROKER_URL")
    with current_app().connection_for_read() as connection, cache.errors_translated(broker):
        if connection.transport.driver_type != "redis":
            with cache.errors_translated():
                return _counts(cache.client())
        # No long retry: a person or Flower waits for the answer.
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
        )
        with connection.channel() as channel:  # with Sentinel: to the master
            pool = channel.pool  # type: ignore[attr-defined]  # what kombu's channels to Redis have
            return _counts(redis.Redis(connection_pool=pool))


def _counts(client: redis.Redis) -> dict[str, int]:
    """Find the keys `cdc:<CDC_NAME>:parked`, which may have the prefix of Celery's broker."""
    keys = sorted(client.scan_iter("*cdc:*:parked", count=1000, _type="hash"))
    return {key.decode().split(":")[-2]: int(client.hlen(key)) for key in keys}
