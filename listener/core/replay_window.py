"""The position from which changes can be published again to a broker that lost its data: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["ReplayWindow"]

_STEPS: Final = 1000  # the window moves in this many steps, so memory does not grow with batches

PositionT = TypeVar("PositionT")


class _Published(NamedTuple, Generic[PositionT]):
    """Everything up to `position` was published by `at`; `since` is when the step began."""

    since: float
    at: float
    position: PositionT


class ReplayWindow(Generic[PositionT]):
    """A position `seconds` behind the published one."""

    def __init__(self, seconds: float, *, start: PositionT, clock: Callable[[], float] = monotonic) -> None:
        """`start` is the position to use during the first `seconds`."""
        self.position = start
        self._seconds = seconds
        self._clock = clock
        self._published: deque[_Published[PositionT]] = deque()  # in time order

    def restart(self, position: PositionT) -> None:
        """Start again at `position`: drop what was published after it."""
        self._published.clear()
        self.position = position

    def published(self, position: PositionT) -> PositionT:
        """Note that everything up to `position` is published; return the position `seconds` ago."""
        since = now = self._clock()
        if self._published and now - self._published[-1].since < self._seconds / _STEPS:
            since = self._published.pop().since
        self._published.append(_Published(since, now, position))
        while self._published and self._published[0].at <= now - self._seconds:
            self.position = self._published.popleft().position
        return self.position
