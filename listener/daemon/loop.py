"""The loop: read, route, publish, acknowledge; and the reaction to a lost source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final

import structlog

from cdc_tasks.routing.router import BinlogRouter, Call, Parked
from listener.control.control import Control
from listener.control.journal.writer import Journal
from listener.control.recent.writer import RecentChanges
from listener.control.replays import Replays
from listener.core.publisher import CheckpointMovedError, Publisher, StoppedError
from listener.core.retry import Retry
from listener.core.source import Batch, Monitor, SourceLostError
from listener.core.wakeup import Wakeup
from listener.daemon.debug_log import told_at_debug
from listener.metrics.meter import Meter
from listener.metrics.rates import RateNotes
from listener.publish.commit_wait_note import CommitWaitNote
from listener.publish.redis.connection import Command as RedisCommand

__all__ = ["Listener"]

log = structlog.get_logger()

_REPLAY_BESIDE: Final = 0.03  # seconds for a replay after each batch with changes
_REPLAY_ALONE: Final = 0.2  # the same, after a batch without changes


class Listener:
    """Publishes the changes of one source to one broker until `stop`."""

    def __init__(
        self,
        monitor: Monitor,
        router: BinlogRouter,
        publisher: Publisher,
        control: Control | None = None,
        journal: Journal | None = None,
        *,
        commit_wait_note: CommitWaitNote | None = None,
        meter: Meter | None = None,
        rates: RateNotes | None = None,
        recent: RecentChanges | None = None,
    ) -> None:
        """With a `meter` it counts its work, with `rates` also while a console is open.

        With `recent` it notes the changes and what they fired.
        """
        self.monitor = self._monitor = monitor
        self.meter = self._meter = meter
        self._rates = rates
        self._journal = journal
        self.recent = self._recent = recent
        self._commit_wait_note = commit_wait_note
        self._router = router
        self._publisher = publisher
        self._control = control
        self._wakeup = Wakeup()
        self._retry = Retry(
            "database",
            on=SourceLostError,
            event="source_is_away",
            shortest=0.2,
            longest=15.0,
            wakeup=self._wakeup,
        )
        self._retry_broker = Retry("broker", wakeup=self._wakeup)

    @property
    def retries(self) -> Sequence[Retry]:
        """The waits for unavailable servers; any thread may read them."""
        return self._retry, self._retry_broker, *self._publisher.retries

    def run(self) -> None:
        """Run until `stop`. Raise CDCError if a person has to act. Nothing is acknowledged before it is published."""
        try:
            if self._control is not None:
                self._retry_broker.call(self._control.begin)
            while not self._wakeup.is_set:
                self._retry.call(self._open)
                if not self._wakeup.is_set:
                    self._stream()
        except StoppedError:
            log.info("stopped_while_waiting")
        finally:
            self._monitor.close()
            self._publisher.close()
            if self._control is not None:
                self._control.close()
            if self._journal is not None:
                self._journal.close()
            if self._recent is not None:
                self._recent.close()

    def stop(self) -> None:
        """Finish the current batch, acknowledge it, and return from `run`; may be called from a signal handler."""
        self._wakeup.set()
        self._monitor.stop()
        self._publisher.stop()

    def _open(self) -> None:
        if self._meter is not None:
            self._meter.opening()
        read = self._publisher.read_checkpoint
        self._monitor.open(saved=read(), again=read)

    def _stream(self) -> None:
        """Publish until the source is lost or the listener is stopped."""
        try:
            self._publish(after=self._publisher.attach(self._monitor.source))
        except (SourceLostError, CheckpointMovedError) as error:
            log.warning("reading_again", reason=error.message)
            if self._meter is not None:
                self._meter.lost(error)
            self._wakeup.wait(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret
        finally:
            self._monitor.close()

    def _publish(self, after: str | None) -> None:
        publisher, control = self._publisher, self._control
        if control is not None:
            if not self._retry_broker.call(control.restore):
                return
            self._hold(control, lambda: None)
            if self._wakeup.is_set:
                return
        journal = self._journal
        if journal is not None:
            journal.attach(after)
        if self._recent is not None:
            self._recent.attach()
        for batch in self._monitor.batches(after):
            fired, also = self._fired(batch)
            confirmed = publisher.publish(
                fired,
                checkpoint=batch.position,
                as_of=batch.as_of,
                pipelined=batch.pipelined,
                notes=batch.notes,
                also=also,
                before=None if journal is None else journal.flush,
            )
            self._acknowledge(confirmed)
            if self._commit_wait_note is not None:
                self._commit_wait_note.keep(batch.commit_wait)
            if control is not None:
                self._obey(control, batch)
            if self._rates is not None:
                self._meter = self._rates.look()
        self._acknowledge(publisher.flush())

    def _fired(self, batch: Batch) -> tuple[Iterable[Call | Parked], Sequence[RedisCommand]]:
        """Return the tasks that the batch and its backfill chunk fire, and the rest of their step."""
        control = self._control
        also: Sequence[RedisCommand] = ()
        fired: Iterable[Call | Parked] = self._router.tasks_for(batch.changes)
        if self._recent is not None:
            fired = self._recent.note(batch, fired)
        if self._journal is not None:
            fired = self._journal.record(fired, batch.changes, batch.position)
        if batch.chunk is not None and control is not None and control.backfills is not None:
            reads, also = control.backfills.take(batch.chunk)
            fired = chain(fired, reads)
        if control is not None:
            fired = control.filtered(fired)
        fired = told_at_debug(fired, batch)
        return (fired if self._meter is None else self._meter.fired(batch, fired)), also

    def _obey(self, control: Control, batch: Batch) -> None:
        control.passed(batch.as_of)
        if self._monitor.has_accepted_gap:
            control.offer_backfills()
        control.look()
        if control.backfills is not None:
            control.backfills.look()
        if control.replays is not None:
            self._replay(control.replays, batch)
        self._hold(control, lambda: self._keep_up(batch.position))

    def _hold(self, control: Control, keep_up: Callable[[], None]) -> None:
        """Wait while the stream is paused."""
        meter = self._meter
        if meter is None:
            control.hold(self._wakeup, keep_up)
            return

        def moved() -> None:
            meter.is_held = True
            meter.moved()
            keep_up()

        try:
            control.hold(self._wakeup, moved)
        finally:
            meter.is_held = False

    def _replay(self, replays: Replays, batch: Batch) -> None:
        """Publish what a replay fires; only briefly, because the stream waits meanwhile."""
        for fired, also in replays.steps(_REPLAY_BESIDE if batch.changes else _REPLAY_ALONE):
            if self._meter is not None:
                self._meter.fired(Batch((), batch.position), fired)
            confirmed = self._publisher.publish(
                fired, checkpoint=batch.position, as_of=batch.as_of, also=also
            )
            self._acknowledge(confirmed)

    def _keep_up(self, position: str) -> None:
        """Let the publisher release deferred tasks while the stream is paused."""
        self._acknowledge(self._publisher.publish((), checkpoint=position))

    def _acknowledge(self, position: str | None) -> None:
        if position is not None:
            self._monitor.acknowledge(position)
            if self._recent is not None:
                self._recent.confirmed(position)
            if self._meter is not None:
                self._meter.confirmed(position)
