"""The position from which changes can be published again to a broker that lost its data: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["ReplayWindow"]

_STEPS: Final = 1000  # the window moves in this many steps: a batch needs no memory of its own

PositionT = TypeVar("PositionT")


class _Published(NamedTuple, Generic[PositionT]):
    """All up to `position` was published by `at`; `since` is when the step began."""

    since: float
    at: float
    position: PositionT


class ReplayWindow(Generic[PositionT]):
    """A position that follows what is published, `seconds` behind."""

    def __init__(self, seconds: float, *, start: PositionT, clock: Callable[[], float] = monotonic) -> None:
        """`start` is the position until something was published `seconds` ago."""
        self.position = start
        self._seconds = seconds
        self._clock = clock
        self._published: deque[_Published[PositionT]] = deque()  # in the order of the times

    def restart(self, position: PositionT) -> None:
        """Start again at `position`: forget what was published after it."""
        self._published.clear()
        self.position = position

    def published(self, position: PositionT) -> PositionT:
        """Note that all up to `position` is published; return the position that is `seconds` behind now."""
        since = now = self._clock()
        if self._published and now - self._published[-1].since < self._seconds / _STEPS:
            since = self._published.pop().since
        self._published.append(_Published(since, now, position))
        while self._published and self._published[0].at <= now - self._seconds:
            self.position = self._published.popleft().position
        return self.position
