"""What the demo adds to the help desk: orders, and a task that a transaction enqueues with each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from celery import shared_task
from slack_sdk import WebClient

import cdc_tasks
from cdc_tasks import db
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from listener.router import BinlogRouter

__all__ = ["CUSTOMER", "ORDERS", "PLACE_ORDER", "confirm_order", "place_order", "setup_router"]

CUSTOMER: Final = "anna@example.com"
_METADATA: Final = sqlalchemy.MetaData()
ORDERS: Final = sqlalchemy.Table(
    "demo_orders",
    _METADATA,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("item", sqlalchemy.String(100), nullable=False),
)
# What is shown of `place_order`.
PLACE_ORDER: Final = """\
with engine.connect() as connection:
    order = connection.execute(insert(ORDERS).values(item=item)).inserted_primary_key[0]
    cdc_tasks.enqueue(connection, confirm_order, order, queue="cdc_notifications")
    connection.{end}()"""


def setup_router(schema: str = "public") -> BinlogRouter:
    """Return the routes of the help desk, which accept the task, too."""
    from listener.routes import setup_router as setup_helpdesk

    router = setup_helpdesk(schema)
    router.accept(confirm_order)
    return router


@shared_task(name="demo.confirm_order")
def confirm_order(order: int) -> str:
    """Send the customer a message on Slack."""
    with db.reading() as session:
        item = session.execute(sqlalchemy.select(ORDERS.c.item).where(ORDERS.c.id == order)).scalar_one()
    client = WebClient(token="xoxb-demo", base_url=worker_settings().slack_api_url)  # noqa: S106 - of no use elsewhere
    client.proxy = None  # as the help desk's: the inbox is on this machine
    client.chat_postMessage(channel=CUSTOMER, text=f"Order {order} is confirmed: {item}")
    return f"order {order} is confirmed"


def place_order(engine: Engine, item: str, *, is_committed: bool) -> int:
    """Insert an order, and enqueue its task, in one transaction; return the order's number."""
    with engine.connect() as connection:
        order = _insert(connection, item)
        cdc_tasks.enqueue(connection, confirm_order, order, queue="cdc_notifications")
        (connection.commit if is_committed else connection.rollback)()
    return order


def _insert(connection: Connection, item: str) -> int:
    key: Any = connection.execute(sqlalchemy.insert(ORDERS).values(item=item)).inserted_primary_key
    number: int = key[0]
    return number
