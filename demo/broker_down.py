"""The step in which one order is rolled back, and the next commits while the broker is down."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from demo.narrator import Since
from demo.orders import CUSTOMER, PLACE_ORDER
from demo.steps import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from demo.narrator import Narrator
    from demo.stack import Stack
    from demo.steps import Effect

__all__ = ["play"]

_ITEM: Final = "a laptop"


def play(stack: Stack, narrator: Narrator, await_effects: Callable[[Iterable[Effect], Since], None]) -> None:
    """Play the step; `await_effects` raises ScenarioError if the message is missing, or if another one arrives."""
    narrator.step("A task is enqueued in the transaction: an order is rolled back, so there is no task")
    narrator.look("/changes", "no change of this order: it was rolled back")
    narrator.python(PLACE_ORDER.format(end="rollback"))
    stack.sample.order(_ITEM, is_committed=False)
    narrator.step("The next order commits while the broker is down: its task comes when the broker is back")
    narrator.look("/", "the broker does not answer, and then all is well again")
    narrator.python(PLACE_ORDER.format(end="commit"))
    order, since = _commit_without_broker(stack, narrator)
    # Tasks arrive in the order of the commits: a task of the first order would have arrived before.
    await_effects([Delivery("slack", CUSTOMER, (f"Order {order} is confirmed",))], since)
    narrator.proof("One message: of the order that was committed.")


def _commit_without_broker(stack: Stack, narrator: Narrator) -> tuple[int, Since]:
    """Return the order's number, and when the broker was back."""
    if stack.broker is None:
        narrator.note("(The broker is yours, so it keeps running.)")
        return stack.sample.order(_ITEM, is_committed=True), Since(time.monotonic(), "commit")
    narrator.shell(f"kill -TERM {stack.broker.pid}  # the broker")
    stack.broker.stop()
    order = stack.sample.order(_ITEM, is_committed=True)
    narrator.note(f"Order {order} is committed. The broker starts again.")
    stack.broker.start()
    return order, Since(time.monotonic(), "the broker's start")
