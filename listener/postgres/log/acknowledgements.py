"""How much of its log the server may forget: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

from listener.core.replay_window import ReplayWindow

__all__ = ["Acknowledgements"]


class Acknowledgements:
    """Which end of the log follows from which published position, and when the server may learn of it."""

    def __init__(self, *, replay_window: float, clock: Callable[[], float] = monotonic) -> None:
        """`replay_window` is in seconds: for so long a broker that lost its data can be given it again."""
        self._window: ReplayWindow[int] = ReplayWindow(replay_window, clock=clock)
        self._ended: deque[int] = deque()  # in the order of the log

    @property
    def lsn(self) -> int:
        """What may be acknowledged now."""
        return self._window.place or 0

    def ended(self, end_lsn: int) -> None:
        """Note the end of a transaction, or of a stretch of log without changes for us."""
        self._ended.append(end_lsn)

    def published(self, up_to: int) -> int:
        """Note that the log is published up to and including this place; return what may be acknowledged.

        A place within a transaction's commit means that a part of it is published: its end is not.
        """
        end_lsn = 0
        while self._ended and self._ended[0] <= up_to + 1:
            end_lsn = self._ended.popleft()
        if end_lsn:
            self._window.published(end_lsn)
        else:
            self._window.move()
        return self.lsn
