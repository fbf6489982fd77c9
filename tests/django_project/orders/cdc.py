"""Routes of this app; the page of the docs has them on the task."""

from cdc_tasks import EventType, became
from cdc_tasks.django import register

register(
    "orders_order",
    EventType.UPDATE,
    "orders.tasks.send_confirmation",
    when=became("status", "paid"),
    args=["id"],
)
register("orders_*", EventType.ALL, "search.index")
