"""Finds expired leases without comparing two machines' clocks.

A worker increments its counter while it has unacknowledged messages. An observer reads all counters every few seconds
and adds up, by its own monotonic clock, how long each has not changed. So steps of Redis' or a machine's clock have no
effect. A pause of the observer itself counts as one interval: the same cause may have paused the workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Lease", "Observer"]


class Lease(NamedTuple):
    """A lease of one channel of a worker: its name, and its counter as it was read."""

    name: str
    counter: int


class _Seen(NamedTuple):
    counter: int
    still_for: float  # seconds


class Observer:
    """Remembers the counters that it has read."""

    def __init__(self, *, timeout: float, longest_step: float) -> None:
        """Expire a lease after `timeout` seconds without a change; one reading adds up to `longest_step` seconds."""
        self._timeout = timeout
        self._longest_step = longest_step
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None

    def expired(self, counters: Mapping[str, int], now: float) -> list[Lease]:
        """Return the leases that were not renewed in time; `now`: this process's monotonic clock."""
        step = 0.0 if self._looked_at is None else min(now - self._looked_at, self._longest_step)
        self._looked_at = now
        self._seen = {name: self._look(name, counter, step) for name, counter in counters.items()}
        return [
            Lease(name, seen.counter) for name, seen in self._seen.items() if seen.still_for >= self._timeout
        ]

    def _look(self, name: str, counter: int, step: float) -> _Seen:
        before = self._seen.get(name)
        return _Seen(counter, before.still_for + step if before and before.counter == counter else 0.0)
