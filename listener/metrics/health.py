"""Whether the listener is live, and whether it is ready, decided from its known state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["DEAD_AFTER", "STUCK_AFTER", "Condition", "Reason", "Role"]

STUCK_AFTER: Final = 8.0  # seconds without a batch, while batches come four times a second
DEAD_AFTER: Final = 120.0  # seconds without a move: only a restart may help
_TROUBLED_AFTER: Final = 2.0  # shorter waits, in seconds, are not trouble: a connection was stale


class Role(StrEnum):
    """The listener's role among those of its CDC_NAME."""

    LEADER = "leader"  # reads
    STANDBY = "standby"  # waits until no other listener reads
    STARTING = "starting"  # connects, for the first time or again


class Reason(StrEnum):
    """Why it is not ready."""

    STARTING = "starting"
    READER_STUCK = "reader_stuck"
    DATABASE_AWAY = "database_away"
    BROKER_AWAY = "broker_away"
    CACHE_AWAY = "cache_away"
    QUEUE_FULL = "queue_full"
    STREAM_PAUSED = "stream_paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The known state of the listener at one moment; times are in seconds."""

    role: Role
    idle: float | None  # since the last batch; None: nothing is being read
    moved: float  # since the last visible action of the loop
    waits: dict[str, float]  # server that it waits for -> since how long
    away: frozenset[str]  # servers that do not answer the samplers
    has_full_queue: bool = False
    is_paused: bool = False  # by a person

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not ready; empty if it is."""
        return tuple(dict.fromkeys(self._reasons()))

    @property
    def is_live(self) -> bool:
        """Whether the loop moves. An unavailable server is not a reason for a restart."""
        return self.role is not Role.LEADER or self.moved <= DEAD_AFTER

    def _reasons(self) -> Iterator[Reason]:
        for server in ("database", "broker", "cache"):
            if server in self.away or self.waits.get(server, 0.0) > _TROUBLED_AFTER:
                yield Reason(f"{server}_away")
        if self.role is Role.STARTING:
            yield Reason.STARTING
        if self.role is not Role.LEADER:
            return
        if self.has_full_queue:
            yield Reason.QUEUE_FULL
        if self.is_paused:
            yield Reason.STREAM_PAUSED
        is_explained = self.waits or self.has_full_queue or self.is_paused
        if self.idle is not None and self.idle > STUCK_AFTER and not is_explained:
            yield Reason.READER_STUCK
