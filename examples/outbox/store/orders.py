"""What the store does. Each function is one transaction, and its events go with it."""

from typing import Any

from sqlalchemy.orm import Session as SessionType

import cdc_tasks
from store.tables import Order, Session
from store.tasks import post_event


class NotAllowedError(Exception):
    """The store does not sell that."""


def place(item: str) -> int:
    """Place an order, and return its number; raises NotAllowedError, and then the receiver does not get it."""
    with Session.begin() as session:
        order = Order(item=item)
        session.add(order)
        session.flush()
        _emit(session, order, "order.placed", item=item)
        if item == "unicorn":
            raise NotAllowedError("There are no unicorns.")
        return order.id


def pay(number: int) -> None:
    """Note that an order is paid."""
    with Session.begin() as session:
        order = session.get_one(Order, number)
        order.is_paid = True
        _emit(session, order, "order.paid")


def _emit(session: SessionType, order: Order, event: str, **more: Any) -> None:
    """Write an event into the transaction. `key`: the events of one order are delivered in order."""
    cdc_tasks.enqueue(session, post_event, event, {"order": order.id, **more}, key=("orders", order.id))
