"""Identifies a log: the creation time of a file, and the transaction at a position.

After a reset or a restore a server has files with the same names, and gives the same GTIDs to other transactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from typing import Final

from listener.core.source import GapError, SourceError
from listener.mysql.client.connection import connect, translated
from listener.mysql.client.replication import events_as_tool
from listener.mysql.codec.compressed_events import NO_CHECKSUM
from listener.mysql.codec.gtid_event import mark_of
from listener.mysql.errors import GTIDModeError
from listener.mysql.log.gtid import MariaDBState, MySQLGTIDs

__all__ = ["gtids_before", "log_created_at", "mark_at", "state_before", "with_checksums"]

_ROTATE, _FORMAT, _PREVIOUS_GTIDS, _GTID_LIST = 4, 15, 35, 163
_ARTIFICIAL: Final = 0x20  # a flag: the event is not in the file
_FIRST: Final = 4  # the offset of a file's first event


def log_created_at(url: str, file: str) -> int:
    """Return when the server created the file, in seconds since 1970, by its first event. Disturbs no replica.

    Raises SourceError, SourceLostError, and GapError if there is no such file.
    """
    with _events(url, file, _FIRST) as events:
        return next(int.from_bytes(event[:4], "little") for event in events if event[4] == _FORMAT)


def state_before(url: str, file: str) -> MariaDBState:
    """Return what was in MariaDB's log before a file; raises as `log_created_at` does."""
    with _events(url, file, _FIRST) as events:
        head = takewhile(_is_about_the_file, events)
        return next((MariaDBState.decoded(event) for event in head if event[4] == _GTID_LIST), MariaDBState())


def gtids_before(url: str, file: str) -> MySQLGTIDs:
    """Return what was in MySQL's log before a file; raises as `log_created_at` does."""
    with _events(url, file, _FIRST) as events:
        head = takewhile(lambda event: event[4] in {_ROTATE, _FORMAT, _PREVIOUS_GTIDS}, events)
        found = (MySQLGTIDs.decoded(event[19:-4]) for event in head if event[4] == _PREVIOUS_GTIDS)
        return next(found, MySQLGTIDs())


def mark_at(url: str, file: str, offset: int) -> str | None:
    """Return the mark of the event at a place: empty if there is none, None if gtid_mode does not allow reading it.

    Raises SourceLostError.
    """
    try:
        with _events(url, file, offset) as events:
            found = next((event for event in events if not _is_about_the_file(event)), b"")
    except GTIDModeError:
        return None
    except (SourceError, GapError):
        return ""
    return mark_of(found) if found else ""


def _is_about_the_file(event: bytes) -> bool:
    return event[4] in {_ROTATE, _FORMAT, _GTID_LIST} or bool(event[17] & _ARTIFICIAL)


@contextmanager
def _events(url: str, file: str, offset: int) -> Iterator[Iterator[bytes]]:
    """Provide the events from a position to the log's end, each with a checksum."""
    with closing(connect(url)) as connection, translated(connection):
        yield with_checksums(events_as_tool(connection, file, offset))


def with_checksums(events: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the events of a tool, each with a checksum, also if the server sends none."""
    has_checksums = True
    for event in events:
        if event[4] == _FORMAT:
            has_checksums = event[-5] == 1
        yield event if has_checksums else event + NO_CHECKSUM
