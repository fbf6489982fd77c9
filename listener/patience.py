"""Waiting out a server that is away, full or starting: back-off with jitter, until it is back or we are told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from listener.publisher import BrokerError, NotDurable, Stopped

__all__ = ["Patience"]

log = structlog.get_logger()

T = TypeVar("T")

# What Redis says while it cannot take a write, and may again later.
_FOR_NOW = (
    "OOM",
    "READONLY",
    "LOADING",
    "BUSY",
    "MISCONF",
    "MASTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
    "CLUSTERDOWN",
)


class Patience:
    """Does something again and again while what it needs is away."""

    def __init__(self, what: str, *, longest: float = 5.0) -> None:
        """`what` names the server in logs; `longest` bounds the seconds between two attempts."""
        self._what = what
        self._stopped = threading.Event()
        self._retrying = Retrying(
            retry=retry_if_exception(_is_passing),
            wait=wait_random_exponential(multiplier=0.05, max=longest),
            sleep=self._sleep,
            before_sleep=self._say,
            reraise=True,
        )

    def until_done(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, at last; raises BrokerError where waiting cannot help, Stopped after `stop`."""
        try:
            return action()
        except Exception as error:
            if not _is_passing(error):
                raise _translated(error) from error
        try:
            result = self._retrying.copy()(action)
        except Exception as error:
            raise _translated(error) from error
        log.info("back", what=self._what)
        return result

    def stop(self) -> None:
        """End a wait soon; may be called from a signal handler."""
        self._stopped.set()

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 or state.attempt_number % 20 == 0:
            log.warning("waiting", what=self._what, attempt=state.attempt_number, error=str(error))


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return False
    if isinstance(error, ResponseError):
        return str(error).startswith(_FOR_NOW) or type(error).__name__ in {
            "OutOfMemoryError",
            "ReadOnlyError",
        }
    return isinstance(
        error, (redis.ConnectionError, redis.TimeoutError, OSError, OperationalError, NotDurable)
    )


def _translated(error: Exception) -> Exception:
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return BrokerError(
            f"The broker refuses us: {error}.", hint="Correct the user and password in CELERY_BROKER_URL."
        )
    if isinstance(error, redis.RedisError):
        return BrokerError(f"The broker refuses a command: {error}.")
    return error
