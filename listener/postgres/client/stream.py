"""A replication connection: receives messages, sends acknowledgements, and stays alive while the reader is busy."""

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

# Seconds between two status updates, at most: the server drops a client after wal_sender_timeout without one.
_FEEDBACK_EVERY = 10.0
# Each status update requests a reply. After this many without one the connection is half-open.
_UNANSWERED = 3.5
_NEVER = 2_000_000_000  # seconds: the largest number that psycopg2 accepts


class ReplicationStream:
    """The messages of one slot.

    psycopg2's `read_message` and `send_feedback` hold the interpreter's lock from start to end. That is why the
    thread that keeps the connection alive needs no lock.
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
        # Acknowledgements have their own cursor. A reading cursor takes over the LSN of each keepalive as soon
        # as its acknowledgement reaches the start of the last message. That start is 0 for a message that describes a
        # table, and before the first message. So the reading cursor sends nothing by itself, except when the server
        # requests a reply: see `PostgresWALMonitor._read`.
        self._feedback: Any = connection.cursor()
        self._answered_at = (
            self._cursor.feedback_timestamp
        )  # by the reading cursor, because the server requested it
        self._started_at = self._answered_at
        self.has_begun = False  # a message has arrived
        self._wakeup = wakeup
        self._closed = threading.Event()
        self._heard = monotonic()
        self._reads = 0  # number of uses of `read`
        self._keep_alive_thread = threading.Thread(target=self._keep_alive, name="keep-alive", daemon=True)
        self.flushed = 0  # acknowledged explicitly

    def start(self, slot: str, options: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
        """Start replication with the first of `options` that the server's plugin accepts, and return these.

        Raise SlotInUseError if another listener reads the slot, SourceError, GapError, SourceLostError.
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
            self._cursor.send_feedback(force=True)  # the status interval starts with it
        self._started_at = self._answered_at = self._cursor.feedback_timestamp
        self._heard = monotonic()
        self._keep_alive_thread.start()
        return taken

    @property
    def read(self) -> Callable[[], Any]:
        """The function that returns the next message (`payload`, `data_start`); None if there is none yet.

        It raises psycopg2.Error: the caller translates outside of its loop.
        """
        self._reads += 1
        with translated():
            self._answer_request()
        read: Callable[[], Any] = self._cursor.read_message if self.has_begun else self._read_first
        return read

    def _answer_request(self) -> None:
        """Reply with the received position to a server that requested it: at shutdown it waits for no more than that.

        The reading cursor has replied already, perhaps with an old acknowledgement. For a waiting server the last
        reply counts, and a reply without an acknowledgement stands for the received position.
        """
        if self._cursor.feedback_timestamp > self._answered_at:
            self._answered_at = self._cursor.feedback_timestamp
            answer: Any = self._connection.cursor()
            answer.send_feedback(write_lsn=self.server_position, force=True)

    @property
    def has_answered(self) -> bool:
        """Whether the server requested a reply, and the reading cursor sent one with an LSN."""
        return bool(self._cursor.feedback_timestamp > self._started_at)

    def _read_first(self) -> Any:
        message = self._cursor.read_message()
        self.has_begun = self.has_begun or message is not None
        return message

    @property
    def server_position(self) -> int:
        """How far the server has read its log for the slot: no earlier message will follow."""
        return int(self._cursor.wal_end)

    @property
    def silence(self) -> float:
        """How many seconds the server has been silent, as of the last `wait`. Any thread may read it."""
        return monotonic() - self._heard

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for a message. Raise SourceLostError if the server has been silent for too long."""
        with translated():
            readable, _, _ = select([self._connection.fileno(), self._wakeup.fileno()], [], [], seconds)
            answered = self._cursor.io_timestamp > self._feedback.feedback_timestamp
        now = monotonic()
        if readable or answered:
            self._heard = now
        elif now - self._heard > _UNANSWERED * self._every:
            message = f"PostgreSQL has not answered for {now - self._heard:.0f} seconds."
            raise SourceLostError(message, code="no_answer")

    def acknowledge(self, lsn: int) -> None:
        """Allow the server to discard its log before `lsn`."""
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
        """Send status updates while the reader is busy, e.g. waiting for a broker or a slow predicate.

        A server that shuts down waits without a limit until everything it sent is acknowledged. A busy reader may
        take forever, so the listener closes the connection.
        """
        seen = self._reads
        while not self._closed.wait(self._every):
            try:
                if self._reads == seen and self._is_shutting_down():
                    self._connection.close()
                    return
                self._feedback.send_feedback(reply=True, force=True)
            except psycopg2.Error:
                return  # the reader gets the same error, and reports it
            seen = self._reads


def _start_command(slot: str, options: Mapping[str, str]) -> Composed:
    pairs = SQL(", ").join(
        SQL("{} {}").format(Identifier(key), _literal(value)) for key, value in options.items()
    )
    return SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(Identifier(slot), pairs)


def _literal(value: str) -> SQL:
    """Return a literal of the replication grammar, which has no escapes, unlike psycopg2's SQL literals."""
    return SQL("'{}'".format(value.replace("'", "''").replace("{", "{{").replace("}", "}}")))
