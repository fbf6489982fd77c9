"""The loop: read, route, publish, acknowledge; and what happens when the source goes away."""

from __future__ import annotations

import random

import structlog

from cdc_tasks.routing.router import BinlogRouter
from listener.core.publisher import CheckpointMovedError, Publisher, StoppedError
from listener.core.retry import Retry
from listener.core.source import Monitor, SourceLostError
from listener.core.wakeup import Wakeup

__all__ = ["Listener"]

log = structlog.get_logger()


class Listener:
    """Hands the changes of one source to one broker until `stop`."""

    def __init__(self, monitor: Monitor, router: BinlogRouter, publisher: Publisher) -> None:
        self._monitor = monitor
        self._router = router
        self._publisher = publisher
        self._wakeup = Wakeup()
        self._retry = Retry(
            "database",
            on=SourceLostError,
            event="source_is_away",
            shortest=0.2,
            longest=15.0,
            wakeup=self._wakeup,
        )

    def run(self) -> None:
        """Run until `stop`; raises CDCError if a person is needed. Nothing unpublished is ever acknowledged."""
        try:
            while not self._wakeup.is_set:
                self._retry.call(self._open)
                if not self._wakeup.is_set:
                    self._stream()
        except StoppedError:
            log.info("stopped_while_waiting")
        finally:
            self._monitor.close()
            self._publisher.close()

    def stop(self) -> None:
        """Finish the batch in hand, acknowledge it, and return from `run`; may be called from a signal handler."""
        self._wakeup.set()
        self._monitor.stop()
        self._publisher.stop()

    def _open(self) -> None:
        read = self._publisher.read_checkpoint
        self._monitor.open(saved=read(), again=read)

    def _stream(self) -> None:
        """Publish until the source is lost or we are stopped."""
        try:
            self._publish(after=self._publisher.attach(self._monitor.source))
        except (SourceLostError, CheckpointMovedError) as error:
            log.warning("reading_again", reason=error.message)
            self._wakeup.wait(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret
        finally:
            self._monitor.close()

    def _publish(self, after: str | None) -> None:
        publisher = self._publisher
        for batch in self._monitor.batches(after):
            confirmed = publisher.publish(
                self._router.tasks_for(batch.changes),
                checkpoint=batch.position,
                as_of=batch.as_of,
                pipelined=batch.pipelined,
                notes=batch.notes,
            )
            self._acknowledge(confirmed)
        self._acknowledge(publisher.flush())

    def _acknowledge(self, position: str | None) -> None:
        if position is not None:
            self._monitor.acknowledge(position)
