"""How far a source is: what each of them tells `status`, the lag alarm and `check`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Reader", "SourceStatus"]


class Reader(StrEnum):
    """Whether anybody reads the database's log for us."""

    RUNNING = "running"
    NONE = "none"
    NEVER_STARTED = "never started"
    LOST = "lost"  # the source has given up what was kept for us


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """What the database says; positions are in its own words."""

    reader: Reader
    detail: str  # who reads, or why nobody can
    current: str  # the end of the log
    acknowledged: str | None  # the log before it may be forgotten
    lag_bytes: int | None  # of log that is not published yet
    retained_bytes: int | None  # of log that is kept for us
    safe_bytes: int | None  # how much more may be written before the source gives us up; None: without limit
    unseen: tuple[str, ...] = ()  # tables that routes name, and whose changes do not come to the listener
    problems: tuple[str, ...] = ()  # what came to be wrong with tables while the listener runs
    gaps: tuple[str, ...] = ()  # changes that are missing, and that nobody has accepted yet
