"""The numbers of messages that wait in Redis until they are due, for people and for Prometheus."""

from __future__ import annotations

import redis

from cdc_tasks import cache, environment
from cdc_tasks.broker.redis.later import waiting
from cdc_tasks.installed import current_app

__all__ = ["counts"]


def counts() -> dict[str, int]:
    """Return the number for each queue that has such messages; raise CacheAwayError if Redis is down.

    On RabbitMQ the result is empty: RabbitMQ counts them itself.
    """
    broker = environment.set_by("CELERY_BROKER_URL")
    with current_app().connection_for_read() as connection, cache.errors_translated(broker):
        if connection.transport.driver_type != "redis":
            return {}
        # No long retry: a person or Flower waits for the answer.
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
        )
        with connection.channel() as channel:
            pool, prefix = channel.pool, channel.global_keyprefix  # type: ignore[attr-defined]  # what kombu's channels to Redis have
            return waiting(redis.Redis(connection_pool=pool), prefix, channel.sep)  # type: ignore[attr-defined]  # the same
