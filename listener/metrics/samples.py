"""The servers' values for the pages, from one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

__all__ = ["QueueSample", "StoreSample", "WorkerSample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSample:
    """The data stored with the checkpoint."""

    position: str | None  # the checkpoint
    as_of: datetime | None  # commit time of the last change before the position
    parked: int
    has_full_queue: bool  # the listener waits because a queue is too long
    awaits_commit: bool  # the listener waits because sessions do not see a transaction yet
    set_aside: Mapping[str, int]  # queue -> messages set aside
    paused_routes: frozenset[str]  # their ids
    reloads: int
    backfills: Mapping[str, int]  # state -> number
    held_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSample:
    """The messages waiting at the broker."""

    lengths: Mapping[str, int]  # queue -> messages
    ages: Mapping[str, float]  # queue -> age of its oldest message in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSample:
    """The workers' counters."""

    dead_letters: Mapping[str, int]  # task -> letters that are there now
    totals: Mapping[tuple[str, str], int]  # (what, of what) -> how often it happened so far
