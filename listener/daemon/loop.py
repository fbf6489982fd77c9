"""The loop: read, route, publish, acknowledge; and what happens when the source goes away."""

from __future__ import annotations

import random

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from cdc_tasks.routing.router import BinlogRouter
from listener.core.publisher import CheckpointMovedError, Publisher, StoppedError
from listener.core.source import Monitor, Saved, SourceLostError
from listener.core.wakeup import Wakeup

__all__ = ["Listener"]

log = structlog.get_logger()


class Listener:
    """Hands the changes of one source to one broker until it is told to stop."""

    def __init__(self, monitor: Monitor, router: BinlogRouter, publisher: Publisher) -> None:
        self._monitor = monitor
        self._router = router
        self._publisher = publisher
        self._wakeup = Wakeup()
        self._until_open = Retrying(
            retry=retry_if_exception_type(SourceLostError),
            wait=wait_random_exponential(multiplier=0.2, max=15),
            sleep=self._sleep,
            before_sleep=_say_away,
            reraise=True,
        )

    def run(self) -> None:
        """Run until `stop`; raises CDCError where a person is needed. Nothing unpublished is ever acknowledged."""
        try:
            while not self._wakeup.is_set:
                self._until_open.copy()(self._open)
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
        self._monitor.open(saved=self._saved(), again=self._saved)

    def _saved(self) -> Saved | None:
        position = self._publisher.checkpoint()
        return None if position is None else Saved(position, self._publisher.notes)

    def _stream(self) -> None:
        """Read on until the source is lost or we are stopped."""
        try:
            self._pump()
        except (SourceLostError, CheckpointMovedError) as error:
            log.warning("reading_again", reason=error.message)
            self._wakeup.wait(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret
        finally:
            self._monitor.close()

    def _pump(self) -> None:
        publisher, monitor = self._publisher, self._monitor
        for batch in monitor.batches(after=publisher.checkpoint(monitor.source)):
            fired = self._router.tasks_for(batch.changes)
            ahead = not batch.settle  # the next is read while the broker takes this one in
            held = publisher.publish(
                fired, checkpoint=batch.position, as_of=batch.as_of, ahead=ahead, notes=batch.notes
            )
            self._acknowledge(held)
        self._acknowledge(publisher.settle())

    def _acknowledge(self, position: str | None) -> None:
        if position is not None:
            self._monitor.acknowledge(position)

    def _sleep(self, seconds: float) -> None:
        if self._wakeup.wait(seconds):
            raise StoppedError


def _say_away(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("source_is_away", attempt=state.attempt_number, error=str(error))
