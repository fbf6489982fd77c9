"""The demo's addition to the help desk: orders, each of which enqueues a task in its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy

import cdc_tasks

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from listener.router import BinlogRouter

__all__ = ["CUSTOMER", "ORDERS", "PLACE_ORDER", "TASK", "place_order", "setup_router"]

CUSTOMER: Final = "anna@example.com"
TASK: Final = "demo.confirm_order"  # in `demo.order_tasks`, which only the worker imports
_QUEUE: Final = "cdc_notifications"
_METADATA: Final = sqlalchemy.MetaData()
ORDERS: Final = sqlalchemy.Table(
    "demo_orders",
    _METADATA,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("item", sqlalchemy.String(100), nullable=False),
)
# The part of `place_order` that is printed.
PLACE_ORDER: Final = """\
with engine.connect() as connection:
    order = connection.execute(insert(ORDERS).values(item=item)).inserted_primary_key[0]
    cdc_tasks.enqueue(connection, "demo.confirm_order", order, queue="cdc_notifications")
    connection.{end}()"""


def setup_router(schema: str = "public") -> BinlogRouter:
    """Return the routes of the help desk, which also accept the task."""
    from listener.routes import setup_router as setup_helpdesk

    router = setup_helpdesk(schema)
    router.accept(TASK)
    return router


def place_order(engine: Engine, item: str, *, is_committed: bool) -> int:
    """Insert an order and enqueue its task in one transaction; return the order's number."""
    with engine.connect() as connection:
        order = _insert(connection, item)
        cdc_tasks.enqueue(connection, TASK, order, queue=_QUEUE)
        (connection.commit if is_committed else connection.rollback)()
    return order


def _insert(connection: Connection, item: str) -> int:
    key: Any = connection.execute(sqlalchemy.insert(ORDERS).values(item=item)).inserted_primary_key
    number: int = key[0]
    return number
