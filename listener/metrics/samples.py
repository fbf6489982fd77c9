"""What servers say of the listener: the values that the pages show, as one look found them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

__all__ = ["QueueSample", "StoreSample", "WorkerSample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSample:
    """What is kept beside the checkpoint."""

    position: str | None  # the checkpoint
    as_of: datetime | None  # when the last change up to it was committed
    parked: int
    has_full_queue: bool  # the listener waits, because a queue is longer than it may be
    awaits_commit: bool  # the listener waits, because sessions do not see a transaction yet
    set_aside: Mapping[str, int]  # queue -> messages beside it
    paused_routes: frozenset[str]  # their ids
    reloads: int
    backfills: Mapping[str, int]  # state -> number
    held_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSample:
    """What waits at the broker."""

    lengths: Mapping[str, int]  # queue -> messages
    ages: Mapping[str, float]  # queue -> seconds since its oldest message came


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSample:
    """What workers counted."""

    dead_letters: Mapping[str, int]  # task -> letters that are there now
    totals: Mapping[tuple[str, str], int]  # (what, of what) -> how often it happened so far
