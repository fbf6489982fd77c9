import os

from cdc_tasks import EventType, changed
from cdc_tasks.django import register

register(
    "stock_*",
    [EventType.INSERT, EventType.UPDATE, EventType.DELETE],
    "stock.seen",
    args=lambda change: [change.table, change.event, change.row["id"], change.row.get("version")],
)
if os.environ.get("SHOP_NAMES_COLUMNS"):
    register(
        "stock_item", EventType.UPDATE, "stock.priced", when=changed("price"), columns=["id", "note", "old"]
    )
    register("orders_order", EventType.ALL, "shop.index")
