"""How much of its log the server may forget: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

__all__ = ["Acknowledgements"]


_STEPS = 1000  # a window is released in so many steps: a transaction of its own takes no memory


class _Published(NamedTuple):
    """By `at` all of the log before `end_lsn` was published; `since` is when the first of it was."""

    since: float
    at: float
    end_lsn: int


class Acknowledgements:
    """Which end of the log follows from which published position, and when it may be told to the server."""

    def __init__(self, *, replay_window: float, clock: Callable[[], float] = monotonic) -> None:
        """`replay_window` in seconds: so long a broker that lost its data can be given it again."""
        self._window = replay_window
        self._clock = clock
        self._ended: deque[int] = deque()  # in the order of the log
        self._published: deque[_Published] = deque()  # in the order of the times
        self.lsn = 0  # what may be acknowledged now

    def ended(self, end_lsn: int) -> None:
        """Note the end of a transaction, or of a stretch of log that does not concern us."""
        self._ended.append(end_lsn)

    def published(self, up_to: int) -> int:
        """Note that the log is published up to and with this place; returns what may be acknowledged.

        A place within a transaction's commit tells that a part of it is published: its end is not.
        """
        now = self._clock()
        while self._ended and self._ended[0] <= up_to + 1:
            self._note(now, self._ended.popleft())
        while self._published and self._published[0].at <= now - self._window:
            self.lsn = self._published.popleft().end_lsn
        return self.lsn

    def _note(self, now: float, end_lsn: int) -> None:
        since = now
        if self._published and now - self._published[-1].since < self._window / _STEPS:
            since = self._published.pop().since
        self._published.append(_Published(since, now, end_lsn))
