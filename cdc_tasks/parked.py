"""How many changes the listeners have parked: theirs to list and replay, but one place should tell of all."""

from __future__ import annotations

import redis

from cdc_tasks import cache
from cdc_tasks.settings import RedisSettings, load

__all__ = ["counts"]


def counts() -> dict[str, int]:
    """Return CDC_NAME: changes, from the broker where it is Redis, else from CACHE_URL; raises CacheAway."""
    url = load(RedisSettings).celery_broker_url.get_secret_value()
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return _counts(cache.client())
    with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
        return _counts(client)


def _counts(client: redis.Redis) -> dict[str, int]:
    """Look for `cdc:<CDC_NAME>:parked`, behind the prefix that Celery's broker may have."""
    with cache.errors_translated():
        keys = sorted(client.scan_iter("*cdc:*:parked", count=1000, _type="hash"))
        return {key.decode().split(":")[-2]: int(client.hlen(key)) for key in keys}
