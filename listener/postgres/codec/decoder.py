"""Code shared by the two plugins' decoders: transactions, ordinals, and leaving out published changes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from struct import error as StructError  # noqa: N812 - struct's own is just `error`
from typing import Any, Final, NamedTuple, TypedDict

import orjson
import structlog

from cdc_tasks.routing.contexts import CONTEXT, ContextError, merged
from cdc_tasks.routing.enqueued import ENQUEUE, MESSAGE_PREFIX, EnqueuedTask
from listener.core.last_change import note_last
from listener.core.source import GapError, SourceError
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.hints import RESTORED, UPDATE
from listener.postgres.log.position import Eras, LastPublished, WALPosition

__all__ = [
    "MALFORMED",
    "Begin",
    "Commit",
    "Decoder",
    "DecoderOptions",
    "Hidden",
    "OtherLogError",
    "UndescribedTableError",
    "WALPosition",
    "Watermark",
]

log = structlog.get_logger()

# Python's exceptions for bytes that do not follow the protocol.
MALFORMED: Final = (
    ArithmeticError,  # an impossible time
    AttributeError,  # a row before the first transaction
    LookupError,
    RecursionError,
    StructError,
    TypeError,
    ValueError,
)


def _read(content: bytes) -> Any:
    """Return a message's JSON; None if it is not JSON."""
    if content.startswith(_OF_CONTEXT):  # frequent: this takes a tenth of the time
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


_OF_CONTEXT: Final = b'{"context"'


class UndescribedTableError(SourceError):
    """The log's messages do not describe a table completely. Its changes must not be skipped: see the hint."""


class Begin(NamedTuple):
    """A transaction's first message: the commit's LSN is known before the changes arrive."""

    commit_lsn: int


class Commit(NamedTuple):
    """A transaction's last message: `end_lsn` may be acknowledged once the changes are published."""

    end_lsn: int


class Hidden(NamedTuple):
    """A transaction's first message, not processed yet: sessions do not see the transaction.

    Decode the message again later, before any other one.
    """

    commit_lsn: int
    xid: int  # of 32 bits


class Watermark(NamedTuple):
    """A mark that a backfill has written to the log: it ends a batch."""

    token: str  # of the chunk that was read between two marks
    end: str  # low or high


class OtherLogError(GapError):
    """The database's log is not the one read before: the database was restored from an earlier state."""

    def __init__(self, last: LastPublished) -> None:
        """`last` was published, but is not in the log."""
        super().__init__(
            f"The last published change, at {last.position}, is not in the database's log: the database was restored "
            "from an earlier state, and has committed other changes since.",
            hint=RESTORED,
        )


class DecoderOptions(TypedDict, total=False):
    """The options common to both plugins; see `Decoder`."""

    keeps_muted: bool
    prefixes: Collection[str]
    is_visible: Callable[[int], bool]


class Decoder(ABC):
    """Decodes one replication connection's messages into changes, and leaves out published ones.

    `start` or `skip_to` sets what was published. While `awaits_last_published` is True, it is unknown whether
    this is the log read before: until then nothing may be published or acknowledged.
    """

    transaction: Transaction  # the one whose changes are being read

    def __init__(
        self,
        *,
        source: str,
        keeps_muted: bool = False,
        prefixes: Collection[str] = (MESSAGE_PREFIX,),
        is_visible: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """`source` names the database cluster in the ids of its changes.

        `keeps_muted`: some route takes muted changes. `prefixes` are those of the logical
        messages that are for us. `is_visible` returns whether sessions see a committed transaction, by its xid.
        """
        self._is_visible = is_visible
        self._prefixes = frozenset(prefixes)
        self._source = source
        self._keeps_muted = keeps_muted
        self._unmuted: tuple[Transaction, float] | None = None  # what to continue with when the muting ends
        self.mutings = 0  # number of mutings
        self._after = WALPosition(0, 0)
        self._expected: LastPublished | None = None
        self.eras = Eras()
        self._ordinal = 0
        self._published_up_to: float = -1  # ordinal in this transaction

    @abstractmethod
    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | Hidden | Watermark | None:
        """Append the message's changes to `changes`; return Begin or Commit if it starts or ends a transaction.

        Hidden, in place of Begin: sessions do not see the transaction yet.

        A Watermark separates the changes before it and after it.

        Raise SourceError, and nothing else, if the message cannot be decoded.
        """

    def verify(self, changes: list[WALChange]) -> None:  # noqa: B027 - pgoutput has nothing to verify
        """Verify all changes since the last call, and correct them in place; call it before they are published.

        Raise SourceError if a change cannot be known, SourceLostError.
        """

    def may_advance(self) -> bool:
        """Return whether the changes read are complete. If False, call it again soon.

        Call it before the position moves past log without changes. Raise SourceError, SourceLostError.
        """
        return True

    def notes(self) -> str | None:
        """Return the notes for the next start; None if they have not changed."""
        return None

    @property
    def commit_lsn(self) -> int:
        """The LSN at which the current transaction commits; 0 before the first one."""
        transaction: Transaction | None = getattr(self, "transaction", None)
        return transaction.commit_lsn if transaction else 0

    def skip_to(self, after: WALPosition) -> None:
        """Leave out all changes up to and including `after`: they are published."""
        self._after = after

    def start(self, last: LastPublished, eras: Eras, *, is_expected: bool) -> None:
        """Leave out published changes; the last one is `last`.

        With `is_expected`, `decode` and `is_waiting` raise OtherLogError if the log does not contain `last` before
        anything later.
        """
        self.skip_to(last.position)
        self.eras = eras
        self._expected = last if is_expected else None

    @property
    def awaits_last_published(self) -> bool:
        """Whether the expected last published change is still to come: until then this may be another log."""
        return self._expected is not None

    def is_waiting(self, read_up_to: int) -> bool:
        """Return whether the expected transaction is still to come. Raise OtherLogError if reading has passed it."""
        if self._expected is None:
            return False
        if read_up_to > self._expected.commit_lsn:
            raise OtherLogError(self._expected)
        return True

    def begin(self, commit_lsn: int, committed: int) -> Begin:
        """Start a transaction; `committed` in microseconds since 2000-01-01 UTC."""
        if self._expected is not None:
            self._compare(commit_lsn, committed, self._expected)
        self._unmuted = None
        eras = self.eras
        era = eras.newest_head if commit_lsn >= eras.newest_from else str(eras.of(commit_lsn))
        self.transaction = Transaction(commit_lsn, committed, self._source, era)
        self._ordinal = 0
        if commit_lsn < self._after.commit_lsn:
            self._published_up_to = float("inf")
        elif commit_lsn == self._after.commit_lsn:
            self._published_up_to = self._after.ordinal
        else:
            self._published_up_to = -1
        return Begin(commit_lsn)

    def _compare(self, commit_lsn: int, committed: int, expected: LastPublished) -> None:
        if commit_lsn < expected.commit_lsn:
            return
        if (commit_lsn, committed) != (expected.commit_lsn, expected.committed):
            raise OtherLogError(expected)
        self._expected = None

    def commit(self, end_lsn: int, changes: Sequence[WALChange]) -> Commit:
        """End the transaction; `changes` end with its last one, unless that was published before."""
        note_last(changes)
        return Commit(end_lsn)

    def next_ordinal(self) -> int | None:
        """Return the ordinal of the transaction's next change; None if the change was published before."""
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        return ordinal if ordinal > self._published_up_to else None

    def take_message(
        self, content: bytes, changes: list[WALChange], prefix: str = MESSAGE_PREFIX
    ) -> Watermark | None:
        """Process a logical message with one of our prefixes.

        Append the task that it enqueues to `changes`. Return the mark of a backfill, if it is one. Any role can write
        such a message, so invalid ones are left out.
        """
        says = _read(content)
        if isinstance(says, dict) and ENQUEUE in says:
            self._enqueue(says[ENQUEUE], changes, prefix)
        elif isinstance(says, dict) and prefix == MESSAGE_PREFIX:
            if CONTEXT in says:
                self._say(says[CONTEXT])
            elif "backfill" in says:
                return Watermark(str(says["backfill"]), str(says.get("mark")))
            else:
                self._mute(says.get("mute"))
        else:
            log.warning("message_ignored", prefix=prefix, position=self.transaction.position_head.decode())
        return None

    def _say(self, said: Any) -> None:
        """Process the transaction's context: its following changes and tasks carry it."""
        transaction = self.transaction
        try:
            context = merged(transaction.context, said)
        except ContextError as error:
            log.warning("context_ignored", code=error.code, position=transaction.position_head.decode())
            return
        if self._unmuted is not None:
            unmuted, published_up_to = self._unmuted
            self._unmuted = unmuted.within(context), published_up_to
        if self._ordinal:
            self.transaction = transaction.within(context)
        else:  # no change has it yet
            transaction.put_into(context)

    def _enqueue(self, fields: Any, changes: list[WALChange], prefix: str) -> None:
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        transaction, published_up_to = self._unmuted or (self.transaction, self._published_up_to)
        if ordinal > published_up_to:  # even if changes are muted
            # A batch holds items from the log, in its order.
            self.append(EnqueuedTask.read(fields, transaction, ordinal, prefix), changes)

    def append(self, task: EnqueuedTask, changes: list[Any]) -> None:
        """Append an enqueued task to a batch's changes."""
        changes.append(task)

    def _mute(self, is_muted: object) -> None:
        """Process whether the following changes are muted.

        Muted changes that no route takes are left out like published ones: they cost nothing.
        """
        if is_muted is True and self._unmuted is None:
            self._unmuted = self.transaction, self._published_up_to
            self.mutings += 1
            if self._keeps_muted:
                self.transaction = self.transaction.muted()
            else:
                self._published_up_to = float("inf")
        elif is_muted is False and self._unmuted is not None:
            (self.transaction, self._published_up_to), self._unmuted = self._unmuted, None

    def unknown(self, what: str) -> SourceError:
        """Return the error for something in the stream that this version cannot decode."""
        at = WALPosition(self.commit_lsn, max(0, self._ordinal - 1))
        return SourceError(
            f"PostgreSQL sent something that cannot be decoded, at {at}: {what}. Nothing was acknowledged.",
            hint=UPDATE,
            code="undecodable",
        )
