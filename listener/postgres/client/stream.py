"""A replication connection: messages come, acknowledgements go, and it lives on whatever the rest is doing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from select import select
from time import monotonic
from types import TracebackType
from typing import Any, Self

import psycopg2
import psycopg2.errors
from psycopg2.extras import LogicalReplicationConnection
from psycopg2.sql import SQL, Composed, Identifier

from listener.core.source import SourceLostError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import translated

__all__ = ["ReplicationStream"]

# Seconds between two words to the server, at most: it drops us after wal_sender_timeout without one.
_FEEDBACK_EVERY = 10.0
# We ask for an answer with each word of ours; after so many without one the connection is half-open.
_UNANSWERED = 3.5
_NEVER = 2_000_000_000  # seconds: what psycopg2 takes at most


class ReplicationStream:
    """Messages of one slot.

    psycopg2's `read_message` holds the interpreter's lock from start to end, as `send_feedback` does: that is
    why the thread that keeps the connection alive needs no lock of ours.
    """

    def __init__(
        self,
        connection: LogicalReplicationConnection,
        wakeup: Wakeup,
        *,
        sender_timeout: float,
        is_shutting_down: Callable[[], bool],
    ) -> None:
        """`sender_timeout` is the server's wal_sender_timeout in seconds, 0 for none."""
        self._connection = connection
        self._is_shutting_down = is_shutting_down
        self._every = min(_FEEDBACK_EVERY, sender_timeout / 3) if sender_timeout else _FEEDBACK_EVERY
        self._cursor: Any = connection.cursor()
        # Acknowledgements have a cursor of their own. The reading one takes over whatever place a keepalive names when
        # what it acknowledged reaches the start of the last message, which is 0 for one that describes a table, and for
        # none. So it says nothing by itself, but where the server asks for an answer: `PostgresWALMonitor._read`.
        self._feedback: Any = connection.cursor()
        self._answered_at = self._cursor.feedback_timestamp  # by the reading cursor, because the server asked
        self._started_at = self._answered_at
        self.has_begun = False  # there was a message
        self._wakeup = wakeup
        self._closed = threading.Event()
        self._heard = monotonic()
        self._looked = 0  # how often somebody asked for messages
        self._keep_alive_thread = threading.Thread(target=self._keep_alive, name="keep-alive", daemon=True)
        self.flushed = 0  # acknowledged explicitly

    def start(self, slot: str, options: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
        """Start replication with the first of `options` that the server's plugin takes, and return them.

        Raises SlotInUseError where another listener has the slot, SourceError, GapError, SourceLostError.
        """
        with translated():
            for place, taken in enumerate(options, start=1):
                try:
                    self._cursor.start_replication_expert(
                        _start_command(slot, taken), decode=False, status_interval=_NEVER
                    )
                    break
                except psycopg2.errors.InvalidParameterValue:
                    if place == len(options):
                        raise
            self._cursor.send_feedback(force=True)  # from now on its interval counts
        self._started_at = self._answered_at = self._cursor.feedback_timestamp
        self._heard = monotonic()
        self._keep_alive_thread.start()
        return taken

    @property
    def read(self) -> Callable[[], Any]:
        """The function that returns the next message (`payload`, `data_start`), None where there is none yet.

        It raises psycopg2.Error: whoever calls it in a loop translates outside of the loop.
        """
        self._looked += 1
        with translated():
            self._answer_request()
        read: Callable[[], Any] = self._cursor.read_message if self.has_begun else self._read_first
        return read

    def _answer_request(self) -> None:
        """Tell a server that has asked for an answer what was received: one that shuts down waits for no more.

        The reading cursor has answered already, perhaps with an acknowledgement of long ago; for a server that waits
        the last answer counts, and one without an acknowledgement stands for what was received.
        """
        if self._cursor.feedback_timestamp > self._answered_at:
            self._answered_at = self._cursor.feedback_timestamp
            answer: Any = self._connection.cursor()
            answer.send_feedback(write_lsn=self.server_position, force=True)

    @property
    def has_answered(self) -> bool:
        """Whether the server asked, and was told of a place by the reading cursor."""
        return bool(self._cursor.feedback_timestamp > self._started_at)

    def _read_first(self) -> Any:
        message = self._cursor.read_message()
        self.has_begun = self.has_begun or message is not None
        return message

    @property
    def server_position(self) -> int:
        """How far the server has read its log for us: what is before it and not here did not concern us."""
        return int(self._cursor.wal_end)

    def wait(self, seconds: float) -> None:
        """Wait for a message, at most so long; raises SourceLostError where the server has been silent for too long."""
        with translated():
            readable, _, _ = select([self._connection.fileno(), self._wakeup.fileno()], [], [], seconds)
            answered = self._cursor.io_timestamp > self._feedback.feedback_timestamp
        now = monotonic()
        if readable or answered:
            self._heard = now
        elif now - self._heard > _UNANSWERED * self._every:
            raise SourceLostError(f"PostgreSQL has not answered for {now - self._heard:.0f} seconds.")

    def acknowledge(self, lsn: int) -> None:
        """Let the server forget its log before `lsn`."""
        if lsn > self.flushed:
            with translated():
                self._feedback.send_feedback(write_lsn=lsn, flush_lsn=lsn, apply_lsn=lsn, force=True)
            self.flushed = lsn

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._closed.set()
        self._connection.close()
        if self._keep_alive_thread.is_alive():
            self._keep_alive_thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_alive(self) -> None:
        """Send word to the server while the reader is busy elsewhere: a broker that is away, a slow predicate.

        A server that shuts down waits until all it sent is acknowledged, however long that takes. Of a reader
        that is busy nobody knows how long: so the server is let go.
        """
        seen = self._looked
        while not self._closed.wait(self._every):
            try:
                if self._looked == seen and self._is_shutting_down():
                    self._connection.close()
                    return
                self._feedback.send_feedback(reply=True, force=True)
            except psycopg2.Error:
                return  # the reader meets the same, and tells
            seen = self._looked


def _start_command(slot: str, options: Mapping[str, str]) -> Composed:
    pairs = SQL(", ").join(
        SQL("{} {}").format(Identifier(key), _literal(value)) for key, value in options.items()
    )
    return SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(Identifier(slot), pairs)


def _literal(value: str) -> SQL:
    """Return a literal of the replication grammar, which knows no escapes: psycopg2's is SQL's."""
    return SQL("'{}'".format(value.replace("'", "''").replace("{", "{{").replace("}", "}}")))
