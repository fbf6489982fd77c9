"""Publishes task events many at a time, up to 50 ms after they happened.

Celery publishes the events of each round of its event loop separately, which takes more than half of the time of a busy
worker's main process. A consumer of events, such as Flower, gets the same events in the same order, several in one
message (`task.multi` in Celery). Events of the worker itself, such as heartbeats, are sent at once.
"""

from __future__ import annotations

from typing import Any, Final

from celery.bootsteps import StartStopStep

__all__ = ["BufferEvents"]

_WAIT: Final = 0.05  # seconds
_MAX_EVENTS: Final = 200  # in a message: an event may show a kilobyte of arguments


class BufferEvents(StartStopStep):
    """Flushes the buffer of the worker's event dispatcher by a timer. Without an event loop Celery has no buffer."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._dispatcher: Any = None

    def start(self, consumer: Any) -> None:
        """Take over the connection's new dispatcher, with the unpublished events of the previous one."""
        before, self._dispatcher = self._dispatcher, consumer.event_dispatcher
        if consumer.hub is None or self._dispatcher is None:
            return
        self._dispatcher.buffer_limit = _MAX_EVENTS
        self._dispatcher.on_send_buffered = lambda: self._flush_soon(consumer)
        if before is not None:
            self._take_over(before)
            self._flush_soon(consumer)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  # Celery's signature
        """Stop the timer: the connection may be broken, and the next dispatcher takes over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self, consumer: Any) -> None:
        """Publish the last events, before Celery closes the dispatcher."""
        self.stop(consumer)
        if self._dispatcher is not None:
            self._dispatcher.flush()

    def _flush_soon(self, consumer: Any) -> None:
        if self._timer is None:
            self._timer = consumer.timer.call_after(_WAIT, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._dispatcher.flush()

    def _take_over(self, before: Any) -> None:
        for group, events in before._group_buffer.items():  # noqa: SLF001  # `extend_buffer` leaves these out
            self._dispatcher._group_buffer[group][:0] = events  # noqa: SLF001  # the same
            events.clear()
