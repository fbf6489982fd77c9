"""What happens when products change."""

from contextlib import ExitStack
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from catalog import index
from cdc_tasks import DELETE, INSERT, READ, UPDATE, RowChange, latest_only, on_change

log = get_task_logger(__name__)


# READ: the rows that were there before, from a backfill. batch: up to 500 changes are one task, and one write.
@on_change("products", INSERT, UPDATE, DELETE, READ, batch=500)
@shared_task
def index_products(messages: list[dict[str, Any]]) -> None:
    """Bring the index up to date. An older change never overwrites a newer one, whichever worker has it."""
    changes = map(RowChange.from_message, messages)
    newest = {change.row["id"]: change for change in changes}  # they are in the order of the commits
    with ExitStack() as locks:
        fresh = [
            change
            for product, change in newest.items()
            if locks.enter_context(latest_only(f"products:{product}", change))
        ]
        index.write(
            [change.row for change in fresh if change.event is not DELETE],
            deleted=[change.row["id"] for change in fresh if change.event is DELETE],
        )
    log.info("%s changes, %s rows written", len(messages), len(fresh))
