"""Why a message was not sent, or may not have been sent. The error decides what happens next."""

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
    "error_for_status",
]


class NotSentError(CDCError):
    """The service did not take the message."""


class RefusedError(NotSentError):
    """The service will never take this message: a revoked token, an unknown channel."""


class UnavailableError(NotSentError, TryAgain):
    """The service cannot be reached, or has an internal error."""


class RateLimitedError(UnavailableError):
    """The service limits the rate, and states how long to wait."""


class AnswerLostError(TryAgain):
    """The service may have taken the message: the connection broke before the answer came."""


def error_for_status(status: int, retry_after: str | None, what: str) -> NotSentError | AnswerLostError:
    """Return the error for an HTTP status; `what` names the service in its text.

    After a 503 the service has not taken the message. After any other 5xx it may have.
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
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
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
