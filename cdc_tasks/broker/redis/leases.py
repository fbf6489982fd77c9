"""Which workers are gone, as an observer sees it. No two machines' clocks are compared.

A worker counts up while it holds messages. An observer looks at all counters every few seconds and adds up, by its own
monotonic clock, for how long each has stood still. A step of anyone's clock, of Redis' or of a machine's, changes
nothing. A pause of the observer itself counts as one look: what stood still meanwhile may have stood still with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Lease", "Observer"]


class Lease(NamedTuple):
    """What one channel of a worker holds is under its name."""

    name: str
    counter: int


class _Seen(NamedTuple):
    counter: int
    still_for: float  # seconds


class Observer:
    """Remembers the counters that it has seen."""

    def __init__(self, *, timeout: float, longest_step: float) -> None:
        """Count a lease as expired after `timeout` seconds; one look adds `longest_step` seconds at most."""
        self._timeout = timeout
        self._longest_step = longest_step
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None

    def expired(self, counters: Mapping[str, int], now: float) -> list[Lease]:
        """Return the leases that were not renewed in time; `now` is this process's monotonic clock."""
        step = 0.0 if self._looked_at is None else min(now - self._looked_at, self._longest_step)
        self._looked_at = now
        self._seen = {name: self._look(name, counter, step) for name, counter in counters.items()}
        return [
            Lease(name, seen.counter) for name, seen in self._seen.items() if seen.still_for >= self._timeout
        ]

    def _look(self, name: str, counter: int, step: float) -> _Seen:
        before = self._seen.get(name)
        return _Seen(counter, before.still_for + step if before and before.counter == counter else 0.0)
