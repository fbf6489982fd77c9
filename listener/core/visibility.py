"""The wait until database sessions see the transactions of the log: see `docs/design.md`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Final

import structlog

from listener.core.wakeup import Wakeup

__all__ = ["CommitWait", "VisibilityWait"]

log = structlog.get_logger()

_FIRST, _LONGEST = 0.0002, 0.05  # seconds between two checks
_TOLD_AFTER: Final = 3.0  # seconds of waiting
_TOLD_EVERY: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitWait:
    """A transaction is in the log, but no session sees it yet. Its tasks, and everything after it, wait."""

    position: str  # of the transaction, for display
    since: str  # ISO 8601


class VisibilityWait:
    """Waits for one transaction after another. `current` is the current wait, if there is one."""

    def __init__(self, wakeup: Wakeup, *, hint: str) -> None:
        """`wakeup` ends a wait; `hint` describes how to find out what a transaction waits for."""
        self._wakeup = wakeup
        self._hint = hint
        self._pause = _FIRST
        self._began = 0.0
        self._told: float | None = None  # seconds of waiting when it was last logged
        self.current: CommitWait | None = None

    def until(self, is_visible: Callable[[], bool], position: str, *, seconds: float) -> bool:
        """Check repeatedly, for up to `seconds`; return whether the transaction is visible.

        `position` is the transaction's. Raises what `is_visible` raises.
        """
        deadline = monotonic() + seconds
        while not is_visible():
            if self.current is None:
                self._begin(position)
            now = monotonic()
            self._tell(now, position)
            if now >= deadline or self._wakeup.wait(self._pause):
                return False
            self._pause = min(2 * self._pause, _LONGEST)
        self._end()
        return True

    def _begin(self, position: str) -> None:
        self.current = CommitWait(
            position=position, since=datetime.now(UTC).isoformat(timespec="milliseconds")
        )
        self._began, self._told = monotonic(), None

    def _tell(self, now: float, position: str) -> None:
        """Log a long wait, and again from time to time while it lasts."""
        waited = now - self._began
        if waited >= (_TOLD_AFTER if self._told is None else self._told + _TOLD_EVERY):
            self._told = waited
            log.warning("commit_not_visible", position=position, seconds=round(waited, 1), hint=self._hint)

    def _end(self) -> None:
        if self.current is not None and self._told is not None:
            log.info(
                "commit_visible",
                position=self.current.position,
                seconds=round(monotonic() - self._began, 1),
            )
        self.current, self._pause, self._told = None, _FIRST, None
