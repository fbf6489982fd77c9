"""What went wrong with a message, as far as it decides what happens next."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from cdc_tasks.errors import CDCError
from cdc_tasks.retry import TryAgain

__all__ = [
    "AnswerLostError",
    "NotSentError",
    "RateLimitedError",
    "RefusedError",
    "UnavailableError",
    "failure_of",
]


class NotSentError(CDCError):
    """The service did not take the message."""


class RefusedError(NotSentError):
    """The service will never take this message: a revoked token, an unknown channel."""


class UnavailableError(NotSentError, TryAgain):
    """The service is away, or has an error of its own."""


class RateLimitedError(UnavailableError):
    """The service wants us to slow down, and says for how long."""


class AnswerLostError(TryAgain):
    """The service may have the message or not: the connection broke before its answer came."""


def failure_of(status: int, retry_after: str | None, what: str) -> NotSentError | AnswerLostError:
    """Tell what an HTTP status says about the message; `what` is for people, and names the service.

    A 503 is a refusal to begin; behind any other 5xx the message may have been posted.
    """
    after = _seconds(retry_after)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimitedError(f"{what}: too many messages.", after=after if after is not None else 30)
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.REQUEST_TIMEOUT}:
        return UnavailableError(f"{what}: HTTP {status}.", after=after)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return AnswerLostError(f"{what}: HTTP {status}.", after=after)
    return RefusedError(f"{what}: HTTP {status}.")


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
