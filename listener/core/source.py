"""The contract of change sources: the loop, the commands and the tests work with each of them."""

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
    """The listener cannot read the database; a person has to fix it."""


class SourceLostError(CDCError):
    """The connection to the database was lost; a retry may help."""


class GapError(CDCError):
    """The source no longer has some unpublished changes."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a previous run stored with the checkpoint."""

    position: str
    notes: str | None = None  # in the source's own format; None: there are none


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes to publish together, in commit order; without changes, only the position moves."""

    changes: Sequence[Change]
    position: str  # of the last change, or a later point of the log before the next one
    as_of: datetime | None = None  # when the last change was committed; None if there is none
    pipelined: bool = False  # the loop may request the next batch before the broker confirms this one
    notes: str | None = None  # what the source needs at its next start; None: its previous notes stay valid
    chunk: Chunk | None = None  # of a backfill: its position is after the changes
    commit_wait: CommitWait | None = None  # the following changes are not visible yet


class Monitor(Protocol):
    """A reader of one database's log.

    The monitor owns its connections and everything that it creates on the server (slot, publication, lock). The loop
    owns the order: publish, then acknowledge.

               open()              batches()              stop(), SourceLostError, GapError
      CLOSED ──────────► OPEN ──────────────► READING ──────────────────────────────────────► ENDED
        ▲    (waits as a standby               yields a batch at least                          │
        │     while another listener reads)    every IDLE_INTERVAL                              │
        └─────────────────────────────── close(), from any state ───────────────────────────────┘

    Changes and positions

    - Changes come in commit order. Their positions ascend.
    - A change that is read again has the same id and position.
    - A change comes only when a session that begins now sees its transaction. Servers send a commit to a reader of
      the log before that. Meanwhile batches without changes come, with `commit_wait`. (Not on MySQL without GTIDs.)
    - A position is opaque to all other code. The loop stores it as the checkpoint and passes it back. It does the same
      with a batch's notes, in the same atomic step.

    Batches

    - The first batch has no changes and comes immediately, with the position at which reading begins. Exception: on
      PostgreSQL a monitor that continues after a restart may first have to find the last published transaction.
    - A single change is not deferred.
    - A batch is bounded: about CDC_BATCH_SIZE changes, and about a megabyte of log. A large transaction comes in
      pieces, and reading may continue after any of them.
    - While the source has no changes, a batch without changes comes at least every IDLE_INTERVAL, forever. The
      callers have no clock. At each such batch the publisher releases deferred tasks (coalesce=,
      batch=), checks whether the broker has lost its data, and answers RabbitMQ's heartbeats.
    - The position of a batch without changes is never before that of the previous batch. It moves past log
      that does not concern us, so an idle database can drop that log.
    - A batch without changes is never pipelined. So with the first such batch after the last change, the broker
      has confirmed every change, and the source may be informed.
    - A chunk that `read_chunk` requested comes in a batch, after its changes. Its rows are as of that
      position: each earlier change is in them, or its row is left out because the stream has sent it. So they
      may be published there like changes.
    - The next batch is requested only when the previous one was published (if it is pipelined: sent) and what the
      broker has confirmed was acknowledged.

    `open` and `batches` block. `stop` may be called from any thread or signal handler. All others are called from
    one thread.
    """

    @property
    def source(self) -> str:
        """What names the database in checkpoints; known once open, and the same for each monitor of it."""

    @property
    def has_accepted_gap(self) -> bool:
        """Whether it continues without missing changes; known after the first batch."""

    @property
    def is_standby(self) -> bool:
        """Whether `open` waits because another listener reads. Any thread may read it."""

    @property
    def silence(self) -> float:
        """How many seconds the source has sent nothing, not even a keep-alive, as of the last wait for it.

        0 before reading starts. Any thread may read it.
        """

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """Connect and become the only reader. Wait as a standby while another listener reads, until `stop`.

        `saved` is what the last run stored, None before the first one. If it exists, something was published before;
        then a source that does not know this listener is a GapError. It may be out of date when a standby's wait is
        over: a source that needs it then calls `again`.

        After `stop` it may return without being the reader; then `batches` is not called.

        Raise SourceError if a person has to act, GapError if the log is gone, SourceLostError otherwise.
        """

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield the changes committed after `after`; None: all that the source still has.

        `after` is the checkpoint, read once the monitor is open. The batches end after `stop`, with one more
        batch perhaps. Nothing is lost if the caller does not read the rest: it comes again at the next start.

        Raise GapError if `after` is before the source's oldest log, SourceLostError, SourceError.
        """

    def acknowledge(self, position: str) -> None:
        """Let the source drop its log up to `position`, now or a little later, but never the log after it.

        `position` is that of a batch. A source that keeps its log by itself does nothing.
        """

    def read_chunk(self, request: ChunkRequest, /) -> None:
        """Start to read rows for a backfill, in parallel with the stream. Does not wait.

        One chunk at a time: a later batch has it, even if the rows cannot be read. It is dropped if the batches end
        before. A source without backfills raises BackfillRefusedError.
        """

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""

    def close(self) -> None:
        """Send the last acknowledgement and release the source. Safe to call twice, and before `open`."""
