"""Positions in a database's log, and the checkpoint: pure, no I/O.

    2@0/16B3777:16B3748-303D94F1B8A40-5:0

This checkpoint means that the log is read up to 0/16B3777:0. In the middle is the last published change, as in
its id. The log can have other contents at the same LSNs: after a restore, a point-in-time recovery, or a failover with
lost commits. The time of the last commit shows this, and the era at the start distinguishes positions of the two logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Era", "Eras", "LastPublished", "WALCheckpoint", "WALPosition", "format_lsn", "parse_lsn"]


class WALPosition(NamedTuple):
    """A change's position in the log: totally ordered, and the same on every replay."""

    commit_lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{format_lsn(self.commit_lsn)}:{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> WALPosition:
        """Parse a position, or the one in the text of a `WALCheckpoint`. Raise ValueError."""
        lsn, *_, ordinal = text.rpartition("@")[2].split(":")
        return cls(parse_lsn(lsn), int(ordinal))

    @classmethod
    def before(cls, lsn: int) -> WALPosition:
        """Return the last position before `lsn`. No change has it, because records start at multiples of 8."""
        return cls(lsn - 1, 0)


class Era(NamedTuple):
    """Identifies the log of a position: a later log has a greater era.

    It is the prefix of a position, empty for the first era: `2@` after a failover, `1.2@` after a gap was
    accepted.
    """

    generation: int = 0  # number of accepted gaps: later changes may have the LSNs of earlier ones
    timeline: int = 1  # the server's; a promotion starts a new one

    def __str__(self) -> str:
        if self.generation:
            return f"{self.generation}.{self.timeline}@"
        return "" if self.timeline == 1 else f"{self.timeline}@"

    @classmethod
    def parse(cls, text: str) -> Era:
        """Parse an era, without the @. Raise ValueError."""
        generation, _, timeline = text.rpartition(".")
        return cls(int(generation or 0), int(timeline or 1))


class Eras:
    """The eras of the positions in a server's log."""

    def __init__(self, generation: int = 0, timeline: int = 1, ends: Mapping[int, int] | None = None) -> None:
        """`timeline` is the server's, `ends` has the LSN at which each earlier timeline of its history ends."""
        self.generation = generation
        self._ends = sorted((ends or {}).items())
        self.newest = Era(generation, timeline)
        self.newest_head = str(self.newest)
        self.newest_from = max((end for _, end in self._ends), default=0)

    def of(self, lsn: int) -> Era:
        """Return the era of an LSN."""
        older = (Era(self.generation, timeline) for timeline, end in self._ends if lsn < end)
        return next(older, self.newest)


class LastPublished(NamedTuple):
    """The last published change; `committed` is 0 if its time is unknown."""

    commit_lsn: int = 0
    committed: int = 0  # microseconds since 2000-01-01 UTC
    ordinal: int = 0

    def __str__(self) -> str:
        return f"{self.commit_lsn:X}-{self.committed:X}-{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> LastPublished:
        """Parse the output of `str`. Raise ValueError."""
        commit_lsn, committed, ordinal = text.split("-")
        return cls(int(commit_lsn, 16), int(committed, 16), int(ordinal))

    @property
    def position(self) -> WALPosition:
        return WALPosition(self.commit_lsn, self.ordinal)


class WALCheckpoint(NamedTuple):
    """A checkpoint: era, position, and the last published change."""

    era: Era
    position: WALPosition
    last: LastPublished

    def __str__(self) -> str:
        return f"{self.era}{format_lsn(self.position.commit_lsn)}:{self.last}:{self.position.ordinal}"

    @property
    def label(self) -> str:
        """The checkpoint for messages: without the last change."""
        return f"{self.era}{self.position}"

    @classmethod
    def parse(cls, text: str) -> WALCheckpoint:
        """Parse the output of `str`, including the format of earlier versions, which has no last change."""
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
    """Parse a log sequence number in PostgreSQL's format. Raise ValueError."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
