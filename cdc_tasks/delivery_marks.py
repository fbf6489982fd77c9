"""Headers in which a broker, or our Redis transport, notes how it has delivered a message: not a part of the message.

A copy of the message must not carry them on. RabbitMQ before version 4.0.1 takes a retry that does for a message that
goes round in circles: it stays in one of the queues for waits, and no worker ever gets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["without_marks"]

_MARKS: Final = frozenset(
    {"redelivered", "x-acquired-count", "x-death", "x-delivery-count"}
    | {f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")}
)


def without_marks(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that the sender of a message has set."""
    return {name: value for name, value in headers.items() if name not in _MARKS}
