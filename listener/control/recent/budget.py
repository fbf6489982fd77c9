"""The limit of the listener's time for noting: a share of the elapsed time."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Budget"]

_SHARE: Final = (
    0.01  # of the time: below the 2 % that are promised, as to look after the budget costs time too
)
_MOST: Final = 0.04  # seconds that can be saved up: enough for a burst of some three thousand changes
_FIRST_COST: Final = 10e-6  # seconds per change, until it is measured
_SLOWEST: Final = (
    4.0  # times longer than its CPU time a piece of work takes, at most: what is beyond that is chance
)


class Budget:
    """Seconds of the loop: some are saved up while little happens.

    Once they are spent, nothing is noted until half of what can be saved is there. So of a flood whole stretches are
    noted, and not some rows of each batch.

    On a machine that others keep busy, work takes longer than its CPU time. Then it costs more, as the loop's own does.
    """

    def __init__(
        self, *, share: float = _SHARE, most: float = _MOST, clock: Callable[[], float] = monotonic
    ) -> None:
        """`most` in seconds."""
        self._share, self._most, self._clock = share, most, clock
        self._left = most
        self._at = clock()
        self._is_spent = False
        self._cost = _FIRST_COST
        self._slowness = 1.0

    def allowed(self, changes: int) -> int:
        """Return how many of these changes, from the first on, may be noted."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._share)
        self._at = now
        if self._is_spent and self._left < self._most / 2:
            return 0
        allowed = min(changes, int(self._left / self._cost))
        self._is_spent = allowed < changes
        return max(0, allowed)

    def spend(self, cpu: float, wall: float, changes: int) -> None:
        """Subtract the time of noting this many changes, in seconds."""
        slowness = min(_SLOWEST, max(1.0, wall / cpu)) if cpu > 0 else 1.0
        self._slowness += 0.1 * (slowness - self._slowness)
        cost = cpu * self._slowness
        self._left -= cost
        self._cost += 0.2 * (cost / changes - self._cost)

    def spend_elsewhere(self, cpu: float) -> None:
        """Subtract the time of another thread, in seconds of CPU."""
        self._left -= cpu * self._slowness
