import os

from cdc_tasks import EventType, became, changed
from cdc_tasks.django import accept, register

register(
    "stock_*",
    [EventType.INSERT, EventType.UPDATE, EventType.DELETE],
    "stock.seen",
    args=lambda change: [change.table, change.event, change.row["id"], change.row.get("version")],
)
accept("orders.*")
register("orders_*", EventType.ALL, "search.tasks.index")
if os.environ.get("SHOP_CONFIRMS"):
    paid = became("status", "paid")
    register("orders_order", EventType.UPDATE, "orders.tasks.send_confirmation", when=paid, args=["id"])
if os.environ.get("SHOP_NAMES_COLUMNS"):
    register(
        "stock_item", EventType.UPDATE, "stock.priced", when=changed("price"), columns=["id", "note", "old"]
    )
