"""What the two plugins' decoders share: transactions, ordinals, and what was published before a restart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import error as StructError  # noqa: N812 - struct's own is just `error`
from typing import Final, NamedTuple

from listener.monitor import SourceError
from listener.postgres.change import Transaction, WALChange, format_lsn, parse_lsn
from listener.postgres.cures import UPDATE

__all__ = ["MALFORMED", "Begin", "Commit", "Decoder", "WALPosition"]

# What Python raises where bytes are not what the protocol says.
MALFORMED: Final = (
    ArithmeticError,  # a time that no calendar has
    AttributeError,  # a row before the first transaction
    LookupError,
    RecursionError,
    StructError,
    TypeError,
    ValueError,
)


class WALPosition(NamedTuple):
    """Where a change stands in the log: totally ordered, and the same on every replay."""

    commit_lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{format_lsn(self.commit_lsn)}:{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> WALPosition:
        """Read what `str` printed, with a timeline in front or without; raises ValueError."""
        lsn, ordinal = text.rpartition("@")[2].split(":")
        return cls(parse_lsn(lsn), int(ordinal))

    @classmethod
    def before(cls, lsn: int) -> WALPosition:
        """Return the last position before `lsn`: records start at multiples of 8, so no change has it."""
        return cls(lsn - 1, 0)


class Begin(NamedTuple):
    """A transaction's first message; its place in the log is known before its changes arrive."""

    commit_lsn: int


class Commit(NamedTuple):
    """A transaction's last message; `end_lsn` may be acknowledged once its changes are published."""

    end_lsn: int


class Decoder(ABC):
    """Turns one replication connection's messages into changes, leaving out what `after` covers."""

    transaction: Transaction  # the one whose changes are being read

    def __init__(self, *, source: str) -> None:
        """`source` names the database cluster in the ids of its changes."""
        self._source = source
        self._after = WALPosition(0, 0)
        self._ordinal = 0
        self._published_up_to: float = -1  # ordinal in this transaction

    @abstractmethod
    def decode(self, payload: bytes, changes: list[WALChange]) -> Begin | Commit | None:
        """Append the changes in one message to `changes`; tell of a transaction's start or end.

        Raises SourceError, and nothing else, where the message cannot be decoded.
        """

    @property
    def commit_lsn(self) -> int:
        """Where the transaction commits that is being read; 0 before the first."""
        transaction: Transaction | None = getattr(self, "transaction", None)
        return transaction.commit_lsn if transaction else 0

    def skip_to(self, after: WALPosition) -> None:
        """Leave out all changes up to and with `after`: the broker has them."""
        self._after = after

    def begin(self, commit_lsn: int, committed_at: int) -> Begin:
        """Start a transaction; `committed_at` in microseconds since 2000-01-01 UTC."""
        self.transaction = Transaction(commit_lsn, committed_at, self._source)
        self._ordinal = 0
        if commit_lsn < self._after.commit_lsn:
            self._published_up_to = float("inf")
        elif commit_lsn == self._after.commit_lsn:
            self._published_up_to = self._after.ordinal
        else:
            self._published_up_to = -1
        return Begin(commit_lsn)

    def commit(self, end_lsn: int) -> Commit:
        """End the transaction."""
        return Commit(end_lsn)

    def next_ordinal(self) -> int | None:
        """Return the number of the transaction's next change; None if it was published before."""
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        return ordinal if ordinal > self._published_up_to else None

    def unknown(self, what: str) -> SourceError:
        """Return the error for something in the stream that this version cannot decode."""
        at = WALPosition(self.commit_lsn, max(0, self._ordinal - 1))
        return SourceError(
            f"PostgreSQL sent something that cannot be decoded, at {at}: {what}. Nothing was acknowledged.",
            hint=UPDATE,
        )
