"""How much of its log the server may forget: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

__all__ = ["Acknowledgements"]


class _Ended(NamedTuple):
    """Once `commit_lsn` is published, the log before `end_lsn` is of no use to us."""

    commit_lsn: int
    end_lsn: int


class Acknowledgements:
    """Which end of the log follows from which published position, and when it may be told to the server."""

    def __init__(self, *, replay_window: float, clock: Callable[[], float] = monotonic) -> None:
        """`replay_window` in seconds: so long a broker that lost its data can be given it again."""
        self._window = replay_window
        self._clock = clock
        self._ended: deque[_Ended] = deque()  # in the order of the log
        self._published: deque[tuple[float, int]] = deque()  # when, and the end of the log that goes with it
        self.lsn = 0  # what may be acknowledged now

    def ended(self, commit_lsn: int, end_lsn: int) -> None:
        """Note the end of a transaction, or of a stretch of log that does not concern us."""
        self._ended.append(_Ended(commit_lsn, end_lsn))

    def published(self, commit_lsn: int) -> int:
        """Note that all up to `commit_lsn` is published; returns what may be acknowledged."""
        now = self._clock()
        while self._ended and self._ended[0].commit_lsn <= commit_lsn:
            self._published.append((now, self._ended.popleft().end_lsn))
        while self._published and self._published[0][0] <= now - self._window:
            self.lsn = self._published.popleft()[1]
        return self.lsn
