"""A part of the log, read by one connection: changes of a time range, as in the stream."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any, Final, NamedTuple

from cdc_tasks.changes import Change, EventType
from cdc_tasks.errors import CDCError
from listener.core.history import Selection
from listener.core.last_change import hold_back
from listener.core.source import GapError, SourceError, SourceLostError
from listener.mysql.client.connection import Connection, translated
from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.decoder import Decoder
from listener.mysql.errors import ACCEPT_GAP
from listener.mysql.log.position import BinlogPosition

__all__ = ["Excerpt", "Window"]

_BEGINS: Final = frozenset({33, 34, 42, 162})  # events that begin a transaction
_LONGEST_READ: Final = 0.5  # seconds
_MAX_BYTES: Final = 4_000_000  # of events: wide rows come in smaller parts
_ENQUEUED: Final = EventType.ENQUEUED.value
_ACCEPT_GAP: Final = "To fire the readable changes: request the replay again with --accept-gap"


class Window(NamedTuple):
    """Which transactions: those committed in [since, until), in microseconds since 1970, that begin before a place."""

    since: int
    until: int
    end: BinlogPosition

    def has(self, committed: int) -> bool:
        return self.since <= committed < self.until


class Excerpt:
    """Reads from one position until the window's end."""

    def __init__(
        self, connection: Connection[Any], events: Iterator[bytes], decoder: Decoder, window: Window
    ) -> None:
        """`events` are the connection's; it is closed with the excerpt."""
        self._connection = connection
        self._events = events
        self._decoder = decoder
        self._window = window
        self._is_wanted = False  # the transaction that is being read
        self._has_ended = False
        self._held: list[BinlogChange] = []  # read, and left to the next part: see `hold_back`

    @property
    def place(self) -> str:
        """The position after the last event read."""
        return str(self._decoder.progress.position)

    def read(self, selection: Selection, limit: int) -> tuple[list[Change], bool]:
        """Return up to about `limit` changes, and whether the window has ended. Raises CDCError."""
        found = self._held
        try:
            with translated(self._connection):
                self._read(found, limit)
        except (SourceError, GapError) as error:
            raise _for_a_replay(error) from error
        progress = self._decoder.progress
        self._held = [] if progress.id_head is None else hold_back(found, progress.id_head)
        progress.hand_over(self._held[0].ordinal if self._held else None)
        changes: list[Change] = [each for each in found if each.kind[2] != _ENQUEUED and selection.has(each)]
        return changes, self._has_ended

    def close(self) -> None:
        """End the connection; safe to call twice."""
        if self._connection.open:
            self._connection.close()
        self._decoder.close()

    def _read(self, found: list[BinlogChange], limit: int) -> None:
        size, until, most = 0, monotonic() + _LONGEST_READ, limit + len(found)
        while len(found) < most and size < _MAX_BYTES and not self._has_ended:
            event = self._next()
            if event is None:
                self._has_ended = True
                break
            self._take(event, found)
            if self._is_wanted:
                size += len(event)
            if monotonic() > until:
                break
        if found and self._decoder.needs_end:
            self._read_to_the_end(found)

    def _next(self) -> bytes | None:
        """Return the next event, of those inside the last one first; None at the end of the log."""
        decoder = self._decoder
        if decoder.inner is not None:
            event = next(decoder.inner, None)
            if event is not None:
                return event
            decoder.leave_inner()
        return next(self._events, None)

    def _take(self, event: bytes, found: list[BinlogChange]) -> None:
        if self._is_wanted and event[4] not in _BEGINS:
            self._decoder.decode(event, found)
            return
        self._decoder.pass_over(event)
        if event[4] in _BEGINS:
            self._begin()

    def _begin(self) -> None:
        """Process the start of a transaction."""
        progress, window = self._decoder.progress, self._window
        self._is_wanted = window.has(progress.committed)
        self._has_ended = BinlogPosition(file=progress.file, offset=progress.start) >= window.end

    def _read_to_the_end(self, found: list[BinlogChange]) -> None:
        """Buffer the rest of a transaction that may be rolled back in the end."""
        for event in self._events:
            if self._decoder.buffer(event, found):
                return
        raise SourceLostError("The log ended within a transaction.")


def _for_a_replay(error: CDCError) -> CDCError:
    """Return the error with the hint for a replay instead of the stream."""
    hint = (error.hint or "").replace(ACCEPT_GAP, _ACCEPT_GAP)
    return type(error)(error.message, hint=hint, code=error.code)
