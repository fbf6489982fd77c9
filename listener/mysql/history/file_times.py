"""Finds the log files for a commit time, from the times at which the server created them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from listener.mysql.client.server import LogFile

__all__ = ["FileTimes"]

_EARLY: Final = 60  # seconds: clocks of two servers may differ
_LATE: Final = 3600  # seconds


class FileTimes:
    """Looks up the creation times of as few files as possible."""

    def __init__(self, files: Sequence[LogFile], created_at: Callable[[str], int]) -> None:
        """`files`: at least one, the oldest first. `created_at` returns a file's time in seconds since 1970."""
        self._names = [each.name for each in files]
        self._created_at = cache(created_at)

    @property
    def oldest(self) -> int:
        """The start of the available log, in seconds since 1970: the time of a file has no fractions."""
        return self._created_at(self._names[0]) + 1

    def first(self, since: float) -> str:
        """Return the last file that was created before `since`, or the oldest one.

        No transaction has a time after that at which it was written. So those committed since then are in this file or
        behind it.
        """
        return self._names[max(0, self._count(since - 1 - _EARLY) - 1)]

    def behind(self, until: float) -> str | None:
        """Return the first file of which all was committed after `until`; None if there is none.

        A transaction may be written after its time: by the length of a statement on MariaDB, by the lag of a replica on
        MySQL. An hour is allowed for that.
        """
        place = self._count(until + _LATE)
        return self._names[place] if place < len(self._names) else None

    def _count(self, at: float) -> int:
        """Return the number of files created up to then."""
        return bisect_right(self._names, at, key=self._created_at)
