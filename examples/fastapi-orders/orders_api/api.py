"""The API: uvicorn orders_api.api:app."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel

import cdc_tasks
from cdc_tasks.web.asgi import ContextMiddleware
from orders_api.tables import Order, Session
from orders_api.tasks import send_receipt

_IN_STOCK = 10


def sign_in(request: Request, x_user_id: Annotated[int, Header()]) -> None:
    """Stand in for your authentication."""
    request.state.user_id = x_user_id


app = FastAPI(title="Orders", dependencies=[Depends(sign_in)])
app.add_middleware(
    ContextMiddleware, context=lambda scope: {"user_id": scope.get("state", {}).get("user_id")}
)


class NewOrder(BaseModel):
    """What someone orders."""

    item: str
    quantity: int = 1


class NewStatus(BaseModel):
    """What becomes of an order."""

    status: str


@app.post("/orders", status_code=201)
async def place_order(wanted: NewOrder) -> dict[str, int]:
    """Save an order, and enqueue its receipt in the same transaction."""
    async with Session.begin() as session:
        order = Order(item=wanted.item, quantity=wanted.quantity)
        session.add(order)
        await session.flush()
        await session.run_sync(cdc_tasks.enqueue, send_receipt, order.id)  # no commit, no receipt
        if order.quantity > _IN_STOCK:
            raise HTTPException(409, f"There are only {_IN_STOCK}.")  # rolls back: no order, no receipt
        return {"id": order.id}


@app.patch("/orders/{order_id}")
async def change_order(order_id: int, new: NewStatus) -> dict[str, str]:
    """Set the status. What follows from it is not said here: see the tasks."""
    async with Session.begin() as session:
        order = await session.get(Order, order_id)
        if order is None:
            raise HTTPException(404, "There is no such order.")
        order.status = new.status
        return {"status": order.status}
