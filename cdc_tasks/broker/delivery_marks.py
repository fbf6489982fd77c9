"""Headers that distinguish one delivery of a task from another.

The broker or our Redis transport adds some of them when it delivers a message; they are not part of the message.
A copy of the message, such as a retry, must not have them. RabbitMQ before version 4.0.1 treats a retry with such
headers as a message in a routing loop. The retry then stays in one of the delay queues, and no worker ever gets it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REPLAYED_HEADER", "REPLAY_HEADER", "came_from", "without_marks", "without_wait"]

REPLAY_HEADER: Final = "cdc_replay"  # of a task that a listener's replay has fired: the replay's id
REPLAYED_HEADER: Final = "cdc_replayed_at"  # of a dead letter's task that was replayed: when

_MARKS: Final = frozenset(
    {"redelivered", "x-acquired-count", "x-death", "x-delivery-count"}
    | {f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")}
)
# A delay is a number of 28 bits, kombu's MAX_NUMBER_OF_BITS_TO_USE. Not imported: kombu before 5.5 has no such name.
_WAIT: Final = re.compile(r"\A(?:[01]\.){28}")


def came_from(delivery_info: Mapping[str, Any] | None) -> str | None:
    """Return the queue that a message came from: its routing key, without RabbitMQ's prefix for a delay."""
    routing_key = (delivery_info or {}).get("routing_key")
    return without_wait(routing_key) if routing_key else None


def without_wait(routing_key: str) -> str:
    """Return a routing key without the prefix of delayed delivery on RabbitMQ."""
    return _WAIT.sub("", routing_key, count=1)


def without_marks(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the headers that the sender has set."""
    return {name: value for name, value in headers.items() if name not in _MARKS}
