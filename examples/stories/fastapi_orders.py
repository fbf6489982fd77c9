"""The story of `examples/fastapi-orders`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

VARIABLES: Final[dict[str, str]] = {}
OTHER_DATABASE: Final = None
TRY: Final = (
    "curl -H 'X-User-ID: 7' --json '{\"item\": \"lamp\"}' {web}/orders",
    "psql $DATABASE_URL -c \"UPDATE orders SET status = 'new'\"",
    "{web}/docs in a browser",
)
_SIGNED_IN: Final = {"X-User-ID": "7"}


def play(stage: Stage) -> None:
    """Order through the API, and ship through the API and in SQL."""
    stage.step("The API saves an order, and enqueues a task in its transaction")
    order = stage.http("POST", "web", "/orders", {"item": "lamp", "quantity": 2}, _SIGNED_IN)["id"]
    stage.see("worker", f"Receipt for order {order}: 2 x lamp")
    stage.step("The next order is rolled back after it has enqueued its task: there is no task")
    stage.http("POST", "web", "/orders", {"item": "lamp", "quantity": 99}, _SIGNED_IN)
    stage.step("The API sets the order to shipped: the task knows who did it")
    stage.http("PATCH", "web", f"/orders/{order}", {"status": "shipped"}, _SIGNED_IN)
    stage.see("worker", f"Order {order} is on its way, said user 7")
    stage.step("Someone ships another order in SQL: the same task runs")
    (row,) = stage.sql("INSERT INTO orders (item, quantity, status) VALUES ('chair', 1, 'new') RETURNING id")
    stage.sql(f"UPDATE orders SET status = 'shipped' WHERE id = {row[0]}")
    stage.see("worker", f"Order {row[0]} is on its way, said someone with SQL")
    stage.exactly(1, "worker", r"send_receipt\[.*received")
