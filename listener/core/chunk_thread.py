"""The thread that reads a backfill's rows in parallel with the stream: one chunk at a time, in its own session."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

from cdc_tasks.errors import CDCError
from listener.core.backfill import BackfillRefusedError

__all__ = ["ChunkThread"]

_LONGEST_END: Final = 5.0  # seconds

WorkT = TypeVar("WorkT")
FoundT = TypeVar("FoundT")


class ChunkThread(ABC, Generic[WorkT, FoundT]):
    """Reads what `start` requests; then `found` or `error` is set."""

    def __init__(self) -> None:
        self._work: SimpleQueue[WorkT | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = threading.Event()
        self.found: FoundT | None = None
        self.error: CDCError | None = None

    def start(self, work: WorkT) -> None:
        """Start to read."""
        self.found = self.error = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="backfill", daemon=True)
            self._thread.start()
        self._work.put(work)

    def close(self) -> None:
        """End the thread and its session; rows being read are dropped."""
        self._is_closed.set()
        self._work.put(None)
        self._interrupt()
        if self._thread is not None:
            self._thread.join(_LONGEST_END)
        self._thread = None

    @abstractmethod
    def _read(self, work: WorkT) -> None:
        """Read the rows and set `found`. Raise CDCError."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Cancel the running query on the server; called from another thread."""

    @abstractmethod
    def _drop_session(self) -> None:
        """Close the session, if there is one; the next read opens another one."""

    def _ended(self) -> None:
        """React to `found` or `error` being set."""

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._read(work)
            except CDCError as error:
                self._drop_session()
                self.error = error
            except Exception as error:  # noqa: BLE001 - the loop has to learn of it, whatever it is
                self._drop_session()
                self.error = BackfillRefusedError(
                    f"Unexpected error: {type(error).__name__}.", code="backfill_failed"
                )
            self._ended()
        self._drop_session()
