"""What was published longer ago than a window: pure, no I/O.

A broker that lost its data can be given again what was published within the window. So PostgreSQL may forget its log
only up to the place before the window, and the bookmark of a binlog's reader stays at that place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["ReplayWindow"]

T = TypeVar("T")

_STEPS: Final = (
    1000  # the window moves in up to this many steps: memory does not depend on the number of batches
)


class _Published(NamedTuple, Generic[T]):
    """By `at` all up to `place` was published; `since` is when the first of this step was."""

    since: float
    at: float
    place: T


class ReplayWindow(Generic[T]):
    """The last place in the log that was published before the window."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = monotonic) -> None:
        """`seconds` is the length of the window; 0: the last published place."""
        self._seconds = seconds
        self._clock = clock
        self._published: deque[_Published[T]] = deque()  # in the order of the times
        self.place: T | None = None

    def restart(self, place: T | None) -> None:
        """Begin again at `place`: what was published beyond it does not count any more."""
        self._published.clear()
        self.place = place

    def published(self, place: T) -> None:
        """Note that all up to `place` is published."""
        now = since = self._clock()
        if self._published and now - self._published[-1].since < self._seconds / _STEPS:
            since = self._published.pop().since
        self._published.append(_Published(since, now, place))
        self._move(now)

    def move(self) -> None:
        """Move on with the time."""
        self._move(self._clock())

    def _move(self, now: float) -> None:
        while self._published and self._published[0].at <= now - self._seconds:
            self.place = self._published.popleft().place
