"""How much of the listener's time noting may take: a share of the time that passes, and never more."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Budget"]

_SHARE: Final = (
    0.012  # of the time: below the 2 % that are promised, as to look after the budget costs time too
)
_MOST: Final = 0.15  # seconds that can be saved up: a burst of some ten thousand changes is noted whole
_FIRST_COST: Final = 10e-6  # seconds a change, until it is known


class Budget:
    """Seconds of CPU: some are saved up while little happens. Once spent, nothing is noted until half is there again.

    So of a flood whole stretches are noted, and whole ones are not, in place of some rows of each batch.
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

    def allowed(self, changes: int) -> int:
        """Return how many of these changes may be noted: the first ones."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._share)
        self._at = now
        if self._is_spent and self._left < self._most / 2:
            return 0
        allowed = min(changes, int(self._left / self._cost))
        self._is_spent = allowed < changes
        return max(0, allowed)

    def spend(self, seconds: float, changes: int = 0) -> None:
        """Take what was spent, on this many changes; 0: it is known from what it was before."""
        self._left -= seconds
        if changes:
            self._cost += 0.2 * (seconds / changes - self._cost)
