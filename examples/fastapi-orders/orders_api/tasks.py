"""What happens when orders change."""

from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from cdc_tasks import UPDATE, RowChange, became, on_change
from orders_api.tables import Order, Session

log = get_task_logger(__name__)


@shared_task
async def send_receipt(order_id: int) -> None:
    """Send a receipt: enqueued by the API, inside its transaction."""
    async with Session() as session:
        order = await session.get_one(Order, order_id)
    log.info("Receipt for order %s: %s x %s", order_id, order.quantity, order.item)


@on_change(Order, UPDATE, when=became("status", "shipped"))
@shared_task
def tell_customer(message: dict[str, Any]) -> None:
    """Report that an order is on its way, no matter who changed it: the API, or someone with SQL."""
    change = RowChange.from_message(message)
    who = f"user {change.context['user_id']}" if change.context else "someone with SQL"
    log.info("Order %s is on its way, said %s", change.row["id"], who)
