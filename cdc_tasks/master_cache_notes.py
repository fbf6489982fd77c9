"""The note about the last refresh of a table of the master cache, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cdc_tasks import cache

__all__ = ["LastWrite", "WriteNote", "last_write", "note_key", "written_key"]


class WriteNote(NamedTuple):
    """The note about the refresh that wrote a table last."""

    ticket: str  # if the last write has another ticket, an older worker wrote it, without a note
    by: str  # the id of its task, or the user who ran the command
    rows: Mapping[str, int]  # their number in each key

    def to_json(self) -> str:
        return json.dumps(self)


class LastWrite(NamedTuple):
    """When a table was refreshed last, and by whom."""

    at: datetime  # when the refresh began, by Redis' clock
    note: WriteNote | None


def last_write(table: str) -> LastWrite | None:
    """Return the last refresh of a table; None if there was none. Raises CacheAwayError."""
    client: Any = cache.client()
    with cache.errors_translated():
        ticket, text = client.mget(written_key(table), note_key(table))
    if ticket is None:
        return None
    note = None if text is None else WriteNote(*json.loads(text))
    at = datetime.fromtimestamp(int(ticket) / 1e6, UTC)
    return LastWrite(at, note if note is not None and note.ticket == ticket.decode() else None)


def written_key(table: str) -> str:
    """Return the key with the ticket of the last write."""
    return f"cdc:master-cache:{table}:written"


def note_key(table: str) -> str:
    """Return the key with the note about the last write."""
    return f"cdc:master-cache:{table}:last"
