"""Waiting out a server that is away, full or starting, with back-off and jitter, until it is back or we are stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from listener.core.publisher import BrokerAwayError, StoppedError
from listener.core.wakeup import Wakeup

__all__ = ["Patience"]

log = structlog.get_logger()

T = TypeVar("T")

_SAY_EVERY = 20  # attempts, unless the reason is another one


class Patience:
    """Does something again and again while what it needs is away."""

    def __init__(self, what: str, *, longest: float = 5.0) -> None:
        """Name the server in logs as `what`; wait `longest` seconds at most between two attempts."""
        self._what = what
        self._wakeup = Wakeup()
        self._said = ""  # why we wait, as the log has it
        self._retrying = Retrying(
            retry=retry_if_exception_type(BrokerAwayError),
            wait=wait_random_exponential(multiplier=0.05, max=longest),
            sleep=self.sleep,
            before_sleep=self._say,
            reraise=True,
        )

    def until_done(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, at last; raises StoppedError after `stop` if it is still in vain."""
        try:
            return action()
        except BrokerAwayError:
            pass  # most often the connection went stale, and a new one does
        result = self._retrying.copy()(action)
        if self._said:
            self._said = ""
            log.info("back", what=self._what)
        return result

    def stop(self) -> None:
        """End a wait soon; may be called from a signal handler."""
        self._wakeup.set()

    @property
    def is_stopped(self) -> bool:
        return self._wakeup.is_set

    def sleep(self, seconds: float) -> None:
        """Wait so long; raises StoppedError after `stop`."""
        if self._wakeup.wait(seconds):
            raise StoppedError

    def check(self) -> None:
        """Raise StoppedError after `stop`."""
        self.sleep(0)

    def _say(self, state: RetryCallState) -> None:
        reason = str(state.outcome.exception()) if state.outcome else ""
        if reason != self._said or state.attempt_number % _SAY_EVERY == 0:
            log.warning("waiting", what=self._what, attempt=state.attempt_number, error=reason)
            self._said = reason
