"""A broker's marks of a delivery are told apart from the message."""

from __future__ import annotations

import pytest
from kombu.transport.native_delayed_delivery import calculate_routing_key

from cdc_tasks.broker.delivery_marks import came_from


@pytest.mark.parametrize("queue", ["bulk", "0.1.bulk", "a.b"])
def test_the_queue_of_a_message_that_has_waited_is_the_one_that_it_was_sent_to(queue: str) -> None:
    assert came_from({"routing_key": queue}) == queue
    assert came_from({"routing_key": calculate_routing_key(7, queue)}) == queue


def test_a_message_may_have_come_from_nowhere() -> None:
    assert came_from(None) is None
    assert came_from({}) is None
