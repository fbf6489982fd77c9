"""The story of `examples/cache`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import redis

if TYPE_CHECKING:
    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

VARIABLES: Final[dict[str, str]] = {}
OTHER_DATABASE: Final = None
TRY: Final = (
    'psql $DATABASE_URL -c "UPDATE products SET price = 1.50, on_sale = true WHERE id = 7"',
    "python -m price_list product 7",
    "python -m price_list sale",
)


def play(stage: Stage) -> None:
    """Change one price, then a thousand at once, and look at Redis each time."""
    with redis.Redis.from_url(stage.servers.broker, decode_responses=True) as cache:
        _play(stage, _Cache(stage, cache))


def _play(stage: Stage, cache: _Cache) -> None:
    stage.step("The cache is empty, the table has products: a backfill sends each row once")
    (products,) = stage.sql("SELECT count(*) FROM products")[0]
    stage.until("all products in Redis", lambda: cache.products() == products)
    stage.say(f"{products} keys price_list:product:*")
    stage.step("A price changes in SQL: its key is fresh")
    ((first,),) = stage.sql("SELECT min(id) FROM products")
    stage.sql(f"UPDATE products SET price = 9.90 WHERE id = {first}")
    cache.shows(f"price_list:product:{first}", lambda value: value["price"] == "9.90")
    stage.step(
        "Half of all products are on sale, in one statement: each key is fresh, and the list is read again"
    )
    before = _refreshes(stage)
    stage.sql("UPDATE products SET price = price / 2, on_sale = true WHERE id % 2 = 0")
    stage.until("the list of the sale", lambda: len(cache.get("price_list:sale") or []) == products // 2)
    ((price,),) = stage.sql("SELECT price FROM products WHERE id = 200")
    cache.shows("price_list:product:200", lambda value: value["price"] == str(price))
    stage.say(
        f"price_list:sale: {products // 2} rows; how often it was read: {_refreshes(stage) - before}, not 100"
    )
    stage.step("A row is deleted: so is its key")
    stage.sql(f"DELETE FROM products WHERE id = {first}")
    stage.until("the key to be gone", lambda: cache.get(f"price_list:product:{first}") is None)
    stage.run(f"python -m price_list product {first}")


def _refreshes(stage: Stage) -> int:
    return stage.count("worker", "Task cdc_tasks.refresh_master_cache[") // 2  # received, succeeded


class _Cache:
    """What is in Redis."""

    def __init__(self, stage: Stage, client: redis.Redis) -> None:
        self._stage = stage
        self._client = client

    def get(self, key: str) -> Any:
        found = self._client.get(key)
        return found and json.loads(str(found))

    def products(self) -> int:
        return sum(1 for _ in self._client.scan_iter("price_list:product:*", count=1000))

    def shows(self, key: str, condition: Any) -> None:
        """Print the key's value when the condition is true of it."""
        self._stage.until(key, lambda: (value := self.get(key)) and condition(value))
        self._stage.say(f"{key}: {json.dumps(self.get(key))}")
