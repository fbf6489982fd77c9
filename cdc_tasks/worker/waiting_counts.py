"""How many messages wait in Redis to be due, for people and for Prometheus."""

from __future__ import annotations

import redis

from cdc_tasks import cache
from cdc_tasks.broker.redis.later import waiting

__all__ = ["counts"]


def counts() -> dict[str, int]:
    """Return the number for each queue that has some; none on RabbitMQ, which counts itself. Raises CacheAwayError."""
    from cdc_tasks.celery import app

    with app.connection_for_read() as connection, cache.errors_translated():
        if connection.transport.driver_type != "redis":
            return {}
        # Not waited for: who asks is a person, or Flower.
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
        )
        with connection.channel() as channel:
            pool, prefix = channel.pool, channel.global_keyprefix  # type: ignore[attr-defined]  # what kombu's channels to Redis have
            return waiting(redis.Redis(connection_pool=pool), prefix, channel.sep)  # type: ignore[attr-defined]  # the same
