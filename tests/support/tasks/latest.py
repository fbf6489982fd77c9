"""An application's tasks that store the newest state of a row, in Redis and elsewhere."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from cdc_tasks import cache
from cdc_tasks.changes import RowChange
from cdc_tasks.latest import latest_only, store_latest

__all__ = ["held", "stored"]


@shared_task(name="latest.stored")
def stored(message: dict[str, Any]) -> None:
    change = RowChange.from_message(message)
    store_latest("stored", change.row["n"], change)
    cache.client().incr("seen")


@shared_task(name="latest.held")
def held(message: dict[str, Any]) -> None:
    change = RowChange.from_message(message)
    with latest_only("a-row", change) as is_latest:
        if is_latest:
            cache.client().rpush("effects", change.row["n"])
    cache.client().rpush("runs", change.row["n"])
