"""What happens when orders change."""

from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger
from django.core.mail import send_mail

from cdc_tasks import UPDATE, RowChange, became, changed, on_change
from cdc_tasks.django.task import TransactionalTask
from orders.models import Order

log = get_task_logger(__name__)


@on_change(Order, UPDATE, when=became("status", "paid"), args=["id"])
@shared_task
def send_confirmation(order_id: int) -> None:
    """Thank the customer, no matter who set the order to paid: a view, the admin, or someone in SQL."""
    order = Order.objects.get(pk=order_id)
    send_mail("Thank you", f"Your {order.item} is paid.", None, [order.customer])


@on_change(Order, UPDATE, when=changed("status"), columns=["id", "status"])
@shared_task
def note_status(message: dict[str, Any]) -> None:
    """Note who changed what: the context is what the middleware wrote into the transaction."""
    change = RowChange.from_message(message)
    old, new = (row["status"] for row in (change.before or {}, change.row))
    who = f"user {change.context['user_id']}" if change.context else "someone with SQL"
    log.info("Order %s: %s -> %s, by %s", change.row["id"], old, new, who)


@shared_task(base=TransactionalTask)
def reserve(order_id: int) -> None:
    """Take the thing from the shelf: enqueued by the view, inside its transaction."""
    log.info("Order %s: a %s is reserved", order_id, Order.objects.get(pk=order_id).item)
