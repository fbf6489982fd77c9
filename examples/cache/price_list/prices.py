"""What a web process calls: it reads Redis, and the table only if a key is missing."""

import json
import os
from typing import Any

import redis
from sqlalchemy import text

from cdc_tasks import db, master_cache
from price_list import tasks  # noqa: F401 - it registers the list
from price_list.celery import app

# Where `store_latest` and the master cache are: CDC_CACHE_URL, or else the broker.
_redis = redis.Redis.from_url(os.environ.get("CDC_CACHE_URL") or app.conf.broker_url)


def product(number: int) -> dict[str, Any] | None:
    """Return a product, None if there is none."""
    if cached := _redis.get(f"price_list:product:{number}"):
        found: dict[str, Any] = json.loads(cached)
        return found
    with db.session() as session:
        query = text("SELECT id, name, CAST(price AS varchar) AS price FROM products WHERE id = :id")
        row = session.execute(query, {"id": number}).mappings().one_or_none()
    return dict(row) if row else None


def sale() -> list[dict[str, Any]]:
    """Return what is on sale, the cheapest first."""
    return master_cache.get("price_list:sale")
