"""Wait for a condition, never for a fixed time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deadline", "at_most", "wait_until"]

T = TypeVar("T")

_BUSY: Final = 8  # slow-down on a machine with other work


def at_most(seconds: float) -> float:
    """Return the limit for an action of up to `seconds` on an idle machine; it only ends an action that hangs."""
    return _BUSY * seconds


class Deadline:
    """A time limit, in seconds on an idle machine, and more on a busy one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = at_most(seconds)
        self._at = time.monotonic() + self._seconds

    def check(self, missing: str) -> None:
        """Fail if it has passed, and report what is `missing`."""
        if time.monotonic() > self._at:
            raise AssertionError(f"waited {self._seconds:g} s: {missing}")


def wait_until(
    condition: Callable[[], T], *, timeout: float = 10, what: str = "the condition", every: float = 0.02
) -> T:
    """Return the first true value of `condition`; if there is none in time, fail and report `what` is missing.

    `timeout` is the limit on an idle machine, in seconds.
    """
    deadline = Deadline(timeout)
    while True:
        value = condition()
        if value:
            return value
        deadline.check(f"no sign of {what}; last seen: {value!r}")
        time.sleep(every)
