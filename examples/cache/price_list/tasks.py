"""What happens when products change."""

import json
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from cdc_tasks import DELETE, MasterCache, RowChange, store_latest

log = get_task_logger(__name__)

# Rows under one key. A refresh reads them again, and an older read never replaces a newer one.
MasterCache.register("products", key="price_list:sale", where="on_sale", order_by=["price", "id"])


@shared_task
def keep_product(message: dict[str, Any]) -> None:
    """Set the product's key, or delete it, unless a newer change did."""
    change = RowChange.from_message(message)
    value = None if change.event is DELETE else json.dumps(change.row)
    is_newest = store_latest(f"price_list:product:{change.row['id']}", value, change)
    log.info("product %s: %s", change.row["id"], "fresh" if is_newest else "a newer change was there")
