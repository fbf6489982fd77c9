"""The story of `examples/outbox`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

VARIABLES: Final[dict[str, str]] = {}
OTHER_DATABASE: Final = None
TRY: Final = ("python -m store place lamp", "python -m store place unicorn", "python -m store pay 1")


def play(stage: Stage) -> None:
    """Place orders: one is committed, one is rolled back, one meets a dead broker, one a receiver that is away."""
    stage.step("An order is committed: its event is posted to the receiver")
    first = _place(stage, "lamp")
    stage.see("receiver", f'"order": {first}, "item": "lamp"')
    stage.step("The next one is rolled back after it has written its event: the receiver does not get it")
    stage.run("python -m store place unicorn")
    stage.step("The broker is down while an order commits: its event comes when the broker is back")
    stage.stop_broker()
    second = _place(stage, "chair")
    stage.start_broker()
    stage.see("receiver", f'"order": {second}, "item": "chair"')
    stage.step("The receiver is away while the order is paid: the worker tries again")
    stage.kill("receiver")
    stage.run(f"python -m store pay {second}")
    stage.see("worker", "The receiver does not answer")
    stage.start_again("receiver")
    stage.see("receiver", f'"event": "order.paid", "order": {second}')
    stage.exactly(0, "receiver", "unicorn")


def _place(stage: Stage, item: str) -> int:
    return int(re.findall(r"order (\d+)", stage.run(f"python -m store place {item}"))[0])
