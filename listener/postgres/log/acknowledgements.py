"""How much of its log the server may discard: pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

from listener.core.replay_window import ReplayWindow

__all__ = ["Acknowledgements"]


class Acknowledgements:
    """The LSN that may be acknowledged when the log is published up to a position.

    The LSN is always the end of a transaction, or of log without changes for the listener. It is the replay window
    behind what is published.
    """

    def __init__(self, *, replay_window: float, clock: Callable[[], float] = monotonic) -> None:
        """`replay_window`: how many seconds the server keeps published changes in case a broker loses them."""
        self._ended: deque[int] = deque()  # in the order of the log, not yet published
        self._published = 0  # the last published end
        self._window = ReplayWindow(replay_window, start=0, clock=clock)

    @property
    def lsn(self) -> int:
        """The LSN that may be acknowledged, as of the last `published`."""
        return self._window.position

    def ended(self, end_lsn: int) -> None:
        """Note the end of a transaction, or of log without changes for the listener."""
        self._ended.append(end_lsn)

    def published(self, up_to: int) -> int:
        """Note that the log is published up to and including this LSN; return the LSN that may be acknowledged.

        The LSN of a transaction's commit means that only part of the transaction is published.
        """
        while self._ended and self._ended[0] <= up_to + 1:
            self._published = self._ended.popleft()
        return self._window.published(self._published)
