"""The status of a source, for `status`, the lag alarm and `check`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Reader", "SourceStatus"]


class Reader(StrEnum):
    """Whether a listener reads the database's log."""

    RUNNING = "running"
    NONE = "none"
    NEVER_STARTED = "never started"
    LOST = "lost"  # the source no longer keeps the log for us


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """What the database reports; positions are in its own format."""

    reader: Reader
    detail: str  # which process reads, or why reading is not possible
    current: str  # the end of the log
    acknowledged: str | None  # the source may drop the log before this
    lag_bytes: int | None  # of unpublished log
    retained_bytes: int | None  # of log kept for us
    safe_bytes: int | None  # how much more log fits before the source drops ours; None: no limit
    unseen: tuple[str, ...] = ()  # tables that routes name but whose changes do not reach the listener
    problems: tuple[str, ...] = ()  # problems with tables while the listener runs
    gaps: tuple[str, ...] = ()  # changes that are missing, not accepted yet
