"""Reads a server's values every few seconds, in its own thread: a hanging server blocks no page and no other server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, time
from typing import Final, Generic, TypeVar

import structlog

from cdc_tasks.errors import CDCError

__all__ = ["FRESH", "Sampler"]

log = structlog.get_logger()

T = TypeVar("T")

_EVERY: Final = 3.0  # seconds between two reads
FRESH: Final = 10.0  # seconds after which an answer is too old: its server does not answer


class Sampler(Generic[T]):
    """Queries a server repeatedly. `value` is the last answer, None if it is older than FRESH seconds."""

    def __init__(self, name: str, read: Callable[[], T], close: Callable[[], None]) -> None:
        """`read` may raise any error, and may hang. `close` ends its session, and may be called at any time."""
        self._read = read
        self._close = close
        self._last: tuple[float, T] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"metrics-{name}", daemon=True)
        self._name = name
        self._was_error: str | None = None
        self.errors: dict[str, float] = {}  # error code -> its last time, as `time.time`
        self._started_at = monotonic()
        self._has_asked = False  # an answer or an error has arrived

    @property
    def value(self) -> T | None:
        last = self._last
        return None if last is None or monotonic() - last[0] > FRESH else last[1]

    @property
    def last(self) -> T | None:
        """The last answer, even if it is old."""
        return None if self._last is None else self._last[1]

    @property
    def is_known(self) -> bool:
        """Whether the server has answered or failed, or has had the time to."""
        return self._has_asked or monotonic() - self._started_at > FRESH

    def start(self) -> None:
        """Start to query."""
        self._thread.start()

    def stop(self) -> None:
        """Stop querying; does not wait for an answer."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._look()
            self._ended.wait(_EVERY)
        self._close()

    def _look(self) -> None:
        try:
            self._last = monotonic(), self._read_twice()
            self._was_error = None
        except CDCError as error:  # the loop gets the same error, and logs it
            self._missed(error.code, error.message)
        except Exception as error:  # noqa: BLE001 - whatever it is: the next look may succeed
            self._missed("unexpected", type(error).__name__)
        self._has_asked = True

    def _read_twice(self) -> T:
        try:
            return self._read()
        except Exception:  # noqa: BLE001 - whatever it is: most often a session that the server has ended
            return self._read()

    def _missed(self, code: str, message: str) -> None:
        self.errors[code] = time()
        if self._last is not None:  # it is outdated, but `last` still has it
            self._last = float("-inf"), self._last[1]
        if code != self._was_error:
            log.debug("metrics_not_read", what=self._name, code=code, error=message)
        self._was_error = code
