"""What a source of changes promises, so that the loop, the commands and the tests need not know which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError
from listener.core.backfill import Chunk, ChunkRequest
from listener.core.visibility import CommitWait

__all__ = ["IDLE_INTERVAL", "Batch", "GapError", "Monitor", "Saved", "SourceError", "SourceLostError"]

IDLE_INTERVAL: Final = 0.25  # seconds between two batches of a monitor while nothing happens: see `Monitor`


class SourceError(CDCError):
    """The listener cannot read the database as it is; a person has to mend it."""


class SourceLostError(CDCError):
    """The connection to the database was lost; trying again may help."""


class GapError(CDCError):
    """The source no longer has changes that were never published."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a former run left with the checkpoint."""

    position: str
    notes: str | None = None  # the source's own format; None: it left none


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that are published together, in commit order; without any, only the position moves on."""

    changes: Sequence[Change]
    position: str  # of the last change, or a later point of the log before the next one
    as_of: datetime | None = None  # when the last change was committed; None if there is none
    pipelined: bool = False  # the loop may ask for the next batch before the broker confirms this one
    notes: str | None = (
        None  # what the source needs at its next start; None: what it noted before still holds
    )
    chunk: Chunk | None = None  # of a backfill: its place is behind the changes
    commit_wait: CommitWait | None = None  # what follows is not visible yet


class Monitor(Protocol):
    """A reader of one database's log.

    The monitor owns its connections and everything that it makes on the server (slot, publication, lock). The loop
    owns the order: publish, then acknowledge.

               open()              batches()              stop(), SourceLostError, GapError
      CLOSED ──────────► OPEN ──────────────► READING ──────────────────────────────────────► ENDED
        ▲    (waits as a standby               yields a batch at least                          │
        │     while another listener reads)    every IDLE_INTERVAL                              │
        └─────────────────────────────── close(), from any state ───────────────────────────────┘

    Changes and positions

    - Changes come in commit order. Their positions ascend.
    - A change that is read again has the id and the position that it had.
    - A change comes only when a session that begins now sees its transaction. Servers send a commit to a reader of
      the log before that. Meanwhile batches without changes come, with `commit_wait`. (Not on MySQL without GTIDs.)
    - A position is opaque to everyone else. The loop stores it as the checkpoint and gives it back. It does the same
      with a batch's notes, in the same atomic step.

    Batches

    - The first batch has no changes and comes at once, with the position at which reading begins. The exception: on
      PostgreSQL a monitor that reads on after a restart may first have to find the last published transaction.
    - A change that comes alone is not deferred.
    - A batch is bounded: about CDC_BATCH_SIZE changes, and about a megabyte of log. A large transaction comes in
      pieces, and reading may go on after any of them.
    - While the source has nothing for us, a batch without changes comes at least every IDLE_INTERVAL, forever. The
      callers have no clock of their own. At each such batch the publisher releases what it deferred (coalesce=,
      batch=), looks whether the broker has lost its data, and answers RabbitMQ's heartbeats.
    - The position of a batch without changes is never before that of the batch in front of it. It moves on over log
      that does not concern us, so that an idle database can drop that log.
    - A batch without changes is never pipelined. So the broker has confirmed every change, and the source may know
      it, one such batch after the last change.
    - A chunk that `read_chunk` asked for comes in a batch, behind its changes. Its rows are as they were at that
      place: what the stream brought before is in them, or the row is left out because the stream brought it. So they
      may be published there as if they were changes.
    - The next batch is asked for only when the one before was published (if it is pipelined: sent) and what the
      broker has confirmed was acknowledged.

    `open` and `batches` block. `stop` may be called from any thread or signal handler. All others are called from
    one thread.
    """

    @property
    def source(self) -> str:
        """What names the database in checkpoints; known once open, and the same for each monitor of it."""

    @property
    def has_accepted_gap(self) -> bool:
        """Whether it goes on without changes that are missing; known after the first batch."""

    @property
    def is_standby(self) -> bool:
        """Whether `open` waits because another listener reads; any thread may ask."""

    @property
    def silence(self) -> float:
        """For how many seconds the source has sent nothing, not even a sign of life, as the last wait for it knew.

        0 before it reads. Any thread may ask.
        """

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """Connect and become the only reader. Wait as a standby while another listener reads, until `stop`.

        `saved` is what the last run left, None before the first one. If it is there, something was published before;
        then a source that does not know this listener is a GapError. It may be out of date when a standby's wait is
        over: a source that needs it calls `again` then.

        After `stop` it may return without being the reader; then `batches` is not called.

        Raises SourceError if a person is needed, GapError if the log is gone, SourceLostError otherwise.
        """

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield what was committed after `after`; None: all that the source still has for us.

        `after` is the checkpoint, read once the monitor is open. The batches end after `stop`, with one more
        batch perhaps. Nothing is lost if the caller does not take the rest: it comes again at the next start.

        Raises GapError if `after` is before the source's oldest log, SourceLostError, SourceError.
        """

    def acknowledge(self, position: str) -> None:
        """Let the source drop its log up to `position`, now or a little later, and never the log after it.

        `position` is that of a batch. A source that keeps its log by itself does nothing.
        """

    def read_chunk(self, request: ChunkRequest, /) -> None:
        """Begin to read rows for a backfill, beside the stream. It waits for nothing.

        One chunk at a time: a later batch has it, also if the rows cannot be read. It is dropped if the batches end
        before. A source that has no backfill raises BackfillRefusedError.
        """

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""

    def close(self) -> None:
        """Send the last acknowledgement and release the source. Safe to call twice, and before `open`."""
