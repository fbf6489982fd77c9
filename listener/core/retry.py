"""Retries with back-off and jitter while a server is unavailable, full or starting, until success or a stop."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import NamedTuple, TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from cdc_tasks.errors import CDCError
from listener.core.publisher import BrokerAwayError, StoppedError
from listener.core.wakeup import Wakeup

__all__ = ["Retry", "Trouble"]

log = structlog.get_logger()

T = TypeVar("T")

_LOG_EVERY = 20  # failed attempts with the same reason


class Trouble(NamedTuple):
    """Why a `Retry` waits, and since when (`time.monotonic`)."""

    code: str  # of the error
    since: float


class Retry:
    """Calls a function repeatedly while it raises one kind of error.

    Other threads may read its state: `trouble`, `losses`, `errors` and `moved_at`.
    """

    def __init__(
        self,
        what: str,
        *,
        on: type[CDCError] = BrokerAwayError,
        event: str = "waiting",
        shortest: float = 0.05,
        longest: float = 5.0,
        wakeup: Wakeup | None = None,
    ) -> None:
        """Name the server `what` in the log, in lines of the event `event`.

        Waits grow randomly from `shortest` to `longest` seconds. A shared `wakeup` ends the waits of several instances.
        """
        self.what = what
        self.trouble: Trouble | None = None  # while it waits
        self.losses = 0  # how often a wait began
        self.errors: dict[str, float] = {}  # error code -> its last time, as `time.time`
        self.moved_at = monotonic()  # the last attempt or wait
        self._on = on
        self._event = event
        self._wakeup = wakeup or Wakeup()
        self._logged = ""  # the reason in the last log line
        self._retrying = Retrying(
            retry=retry_if_exception_type(on),
            wait=wait_random_exponential(multiplier=shortest, max=longest),
            sleep=self.sleep,
            before_sleep=self._log_wait,
            reraise=True,
        )

    def call(self, action: Callable[[], T]) -> T:
        """Return the result of `action` once it succeeds. Raise StoppedError if `stop` ends a wait."""
        try:
            return action()
        except self._on as error:  # usually the connection is stale, and a new one works
            self.losses += 1
            self._note(error)
        try:
            result = self._retrying.copy()(action)
        finally:
            self.trouble = None
        if self._logged:
            self._logged = ""
            log.info("back", what=self.what)
        return result

    def stop(self) -> None:
        """End a wait soon; may be called from a signal handler."""
        self._wakeup.set()

    @property
    def is_stopped(self) -> bool:
        return self._wakeup.is_set

    def sleep(self, seconds: float) -> None:
        """Wait. Raise StoppedError after `stop`."""
        self.moved_at = monotonic()
        if self._wakeup.wait(seconds):
            raise StoppedError

    def check(self) -> None:
        """Raise StoppedError after `stop`."""
        self.sleep(0)

    def _note(self, error: CDCError) -> None:
        since = monotonic() if self.trouble is None else self.trouble.since
        self.trouble = Trouble(error.code, since)
        self.errors[error.code] = time()

    def _log_wait(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, CDCError):
            self._note(error)
        reason = str(error) if error else ""
        if reason != self._logged or state.attempt_number % _LOG_EVERY == 0:
            log.warning(self._event, what=self.what, attempt=state.attempt_number, error=reason)
            self._logged = reason
