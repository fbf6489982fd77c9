"""An alarm before the database's disk is full: the log kept for us grows while nothing is published."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from cdc_tasks.errors import CDCError
from listener.core.source_status import SourceStatus

__all__ = ["LagAlarm"]

log = structlog.get_logger()

_EVERY = 30.0  # seconds


class LagAlarm:
    """Checks the source and warns, in its own thread: the listener's loop may be waiting for the broker."""

    def __init__(self, read: Callable[[], SourceStatus], limit: int, *, every: float = _EVERY) -> None:
        """`read` uses its own session; `limit` is in bytes of kept log; `every` in seconds."""
        self._read = read
        self._limit = limit
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lag-alarm", daemon=True)
        self._is_on = False

    def look(self) -> None:
        """Check once: warn while too much log is kept or too little room is left; log when that has ended."""
        try:
            source = self._read()
        except CDCError as error:
            log.debug("lag_unknown", reason=error.message)  # the loop gets the same error, and logs it
            return
        if source.unseen:
            log.error("tables_unseen", tables=source.unseen, hint="python -m listener check")
        if source.problems:
            log.error("tables_wrong", problems=source.problems, hint="python -m listener check")
        retained, safe = source.retained_bytes or 0, source.safe_bytes
        if retained > self._limit or (safe is not None and safe < retained):
            self._is_on = True
            log.warning(
                "lag",
                retained_bytes=retained,
                lag_bytes=source.lag_bytes,
                bytes_until_lost=safe,
                hint="See what delays the listener: python -m listener status",
            )
        elif self._is_on:
            self._is_on = False
            log.info("lag_over", retained_bytes=retained)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self.look()
