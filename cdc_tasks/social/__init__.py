"""Messaging services: one module each, found by its name. What each of them promises stands here."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from cdc_tasks.errors import CDCError
from cdc_tasks.retrying import TryAgain

if TYPE_CHECKING:
    from pydantic import SecretStr

    from cdc_tasks.messages import Message

__all__ = [
    "Adapter",
    "AnswerLost",
    "NotSent",
    "RateLimited",
    "Recipient",
    "Refused",
    "Unavailable",
    "adapter_for",
]

TIMEOUT = 10  # seconds, for a connection and for each answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """One account of one person, as the service knows it."""

    address: str | None  # a channel or user id, where the service has those
    secret: SecretStr  # a token, or a webhook URL
    email: str


class Adapter(Protocol):
    """A module of this package. It owns its connections, keeps no state, and blocks for seconds at most.

    Errors of its library do not leave it: they carry tokens and URLs. What leaves it says what is known:
    NotSent in one of its three forms, or AnswerLost. Without an error the service has the message.
    """

    def send(self, recipient: Recipient, message: Message) -> None:
        """Send it once; no tries of its own."""

    def check(self, recipient: Recipient) -> None:
        """Raise Refused where the account can be seen to be wrong without sending anything."""


class NotSent(CDCError):
    """The service did not take the message."""


class Refused(NotSent):
    """The service will never take this message: a revoked token, an unknown channel."""


class Unavailable(NotSent, TryAgain):
    """The service is away, or has an error of its own."""


class RateLimited(Unavailable):
    """The service wants us to slow down, and says for how long."""


class AnswerLost(TryAgain):
    """The service may have the message or not: the connection broke before its answer came."""


def failure_of(status: int, retry_after: str | None, what: str) -> NotSent | AnswerLost:
    """Tell what an HTTP status says about the message; `what` is for people, and names the service.

    A 503 is a refusal to begin; behind any other 5xx the message may have been posted.
    """
    after = _seconds(retry_after)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimited(f"{what}: too many messages.", after=after if after is not None else 30)
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.REQUEST_TIMEOUT}:
        return Unavailable(f"{what}: HTTP {status}.", after=after)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return AnswerLost(f"{what}: HTTP {status}.", after=after)
    return Refused(f"{what}: HTTP {status}.")


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if not retry_after:
        return None
    try:
        return max(float(retry_after), 0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds(), 0)
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return None


class UnknownServiceError(CDCError):
    """There is no adapter for this service."""


def adapter_for(service: str) -> Adapter:
    """Return the module of this name; raises UnknownServiceError."""
    services = [module.name for module in pkgutil.iter_modules(__path__)]
    if service not in services:
        raise UnknownServiceError(f"There is no service {service!r}; there are: {', '.join(services)}.")
    return cast("Adapter", import_module(f"{__name__}.{service}"))
