"""Notifications: their text, the accounts that get them, the rate limits, and the log of sent messages.

The names below are public: use them to add kinds of messages and services (docs/tasks.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cdc_tasks.notify.delivery import notify_users
    from cdc_tasks.notify.message import Fact, Message, Notification, composes
    from cdc_tasks.notify.models import ConnectedAccount, User
    from cdc_tasks.notify.send_errors import (
        AnswerLostError,
        NotSentError,
        RateLimitedError,
        RefusedError,
        UnavailableError,
    )
    from cdc_tasks.notify.services import Adapter, Rate, Recipient, register

__all__ = [
    "Adapter",
    "AnswerLostError",
    "ConnectedAccount",
    "Fact",
    "Message",
    "NotSentError",
    "Notification",
    "Rate",
    "RateLimitedError",
    "Recipient",
    "RefusedError",
    "UnavailableError",
    "User",
    "composes",
    "notify_users",
    "register",
]

_HOME: Final = {
    **dict.fromkeys(("Fact", "Message", "Notification", "composes"), "message"),
    **dict.fromkeys(("ConnectedAccount", "User"), "models"),
    **dict.fromkeys(
        ("AnswerLostError", "NotSentError", "RateLimitedError", "RefusedError", "UnavailableError"),
        "send_errors",
    ),
    **dict.fromkeys(("Adapter", "Rate", "Recipient", "register"), "services"),
    "notify_users": "delivery",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
