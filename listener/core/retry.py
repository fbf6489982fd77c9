"""Retrying while a server is away, full or starting, with back-off and jitter, until it is back or we are stopped."""

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

_LOG_EVERY = 20  # attempts that fail for the same reason


class Trouble(NamedTuple):
    """Why a `Retry` waits, and since when by `time.monotonic`."""

    code: str  # of the error
    since: float


class Retry:
    """Calls a function again and again while it raises one kind of error.

    What it waits for is there to be read from another thread: `trouble`, `losses`, `errors` and `moved_at`.
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
        """Name the server in the log as `what`, in lines of the name `event`.

        Waits grow at random from `shortest` to `longest` seconds. `wakeup` ends the waits of several at once.
        """
        self.what = what
        self.trouble: Trouble | None = None  # while it waits
        self.losses = 0  # how often it had to begin to wait
        self.errors: dict[str, float] = {}  # an error's code -> when it came last, as `time.time`
        self.moved_at = monotonic()  # the last attempt or wait
        self._on = on
        self._event = event
        self._wakeup = wakeup or Wakeup()
        self._logged = ""  # the reason of the last line
        self._retrying = Retrying(
            retry=retry_if_exception_type(on),
            wait=wait_random_exponential(multiplier=shortest, max=longest),
            sleep=self.sleep,
            before_sleep=self._log_wait,
            reraise=True,
        )

    def call(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, at last; raises StoppedError if `stop` ends a wait."""
        try:
            return action()
        except self._on as error:  # most often the connection went stale, and a new one works
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
        """Wait; raises StoppedError after `stop`."""
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
