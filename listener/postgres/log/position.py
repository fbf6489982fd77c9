"""Where a listener is in a database's log, as its checkpoint has it: pure, no I/O.

    2@0/16B3777:16B3748-303D94F1B8A40-5:0

The log is read up to 0/16B3777:0. In the middle is the change that was published last, as its id has it. The log can be
another one at the same places: after a restore, a point-in-time recovery, or a failover that lost commits. The time of
the last commit tells, and the era in front keeps the places of one log apart from those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Era", "Eras", "LastPublished", "WALCheckpoint", "WALPosition", "format_lsn", "parse_lsn"]


class WALPosition(NamedTuple):
    """Where a change stands in the log: totally ordered, and the same on every replay."""

    commit_lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{format_lsn(self.commit_lsn)}:{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> WALPosition:
        """Read what `str` printed, also as a part of what `WALCheckpoint` prints; raises ValueError."""
        lsn, *_, ordinal = text.rpartition("@")[2].split(":")
        return cls(parse_lsn(lsn), int(ordinal))

    @classmethod
    def before(cls, lsn: int) -> WALPosition:
        """Return the last position before `lsn`: records start at multiples of 8, so no change has it."""
        return cls(lsn - 1, 0)


class Era(NamedTuple):
    """Which log it is that has a place: a later one has the greater era.

    Printed in front of a place, the first as nothing: `2@` after a failover, `1.2@` after a gap was accepted.
    """

    generation: int = 0  # how often a gap was accepted: what comes then may stand where other changes stood
    timeline: int = 1  # the server's; a promotion begins a new one

    def __str__(self) -> str:
        if self.generation:
            return f"{self.generation}.{self.timeline}@"
        return "" if self.timeline == 1 else f"{self.timeline}@"

    @classmethod
    def parse(cls, text: str) -> Era:
        """Read what `str` printed, without the @; raises ValueError."""
        generation, _, timeline = text.rpartition(".")
        return cls(int(generation or 0), int(timeline or 1))


class Eras:
    """Which era each place of a server's log is of."""

    def __init__(self, generation: int = 0, timeline: int = 1, ends: Mapping[int, int] | None = None) -> None:
        """`timeline` is the server's, `ends` where those end that it comes from."""
        self.generation = generation
        self._ends = sorted((ends or {}).items())
        self.newest = Era(generation, timeline)
        self.newest_head = str(self.newest)
        self.newest_from = max((end for _, end in self._ends), default=0)

    def of(self, lsn: int) -> Era:
        """Return the era of a place."""
        older = (Era(self.generation, timeline) for timeline, end in self._ends if lsn < end)
        return next(older, self.newest)


class LastPublished(NamedTuple):
    """The change that was published last; with `committed` 0 it is not known which one stood there."""

    commit_lsn: int = 0
    committed: int = 0  # microseconds since 2000-01-01 UTC
    ordinal: int = 0

    def __str__(self) -> str:
        return f"{self.commit_lsn:X}-{self.committed:X}-{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> LastPublished:
        """Read what `str` printed; raises ValueError."""
        commit_lsn, committed, ordinal = text.split("-")
        return cls(int(commit_lsn, 16), int(committed, 16), int(ordinal))

    @property
    def position(self) -> WALPosition:
        return WALPosition(self.commit_lsn, self.ordinal)


class WALCheckpoint(NamedTuple):
    """A checkpoint."""

    era: Era
    position: WALPosition
    last: LastPublished

    def __str__(self) -> str:
        return f"{self.era}{format_lsn(self.position.commit_lsn)}:{self.last}:{self.position.ordinal}"

    @property
    def label(self) -> str:
        """What a person is told of it."""
        return f"{self.era}{self.position}"

    @classmethod
    def parse(cls, text: str) -> WALCheckpoint:
        """Read what `str` printed, or what earlier versions did, which did not note the last change."""
        position = WALPosition.parse(text)
        last = text.partition(":")[2].rpartition(":")[0]
        return cls(
            Era.parse(text.rpartition("@")[0]),
            position,
            LastPublished.parse(last) if last else LastPublished(position.commit_lsn, 0, position.ordinal),
        )


def format_lsn(lsn: int) -> str:
    """Return a log sequence number as PostgreSQL prints it, e.g. 0/16B3748."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Read a log sequence number as PostgreSQL prints it; raises ValueError."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
