"""What is noted of a change: its id, its context, and the outcome of each route. Of its row only the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

from cdc_tasks.changes import EventType

__all__ = [
    "Deed",
    "Entry",
    "Fate",
    "Kind",
    "KnownRoute",
    "LeftOut",
    "Noted",
    "NotedChange",
    "Transaction",
    "Why",
    "microseconds",
    "time_of",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Fate(StrEnum):
    """The outcome of a route that watches the change's table, as the listener decided then."""

    FIRED = "fired"
    COALESCED = "coalesced"  # into one task with an earlier change
    WAITS = "waits"  # the route was paused: the task was set aside
    PARKED = "parked"
    SKIPPED = "skipped"  # a command told the route to fire nothing
    WHEN = "when"  # its `when` was false
    MUTED = "muted"  # the transaction mutes its changes
    EVENT = "event"  # the route is for other events


class Why(StrEnum):
    """Why changes are not noted."""

    RATE = "rate"  # more changes than may be noted
    STORE = "store"  # Redis was unavailable, full, or refused
    ENDED = "ended"  # the listener ended without writing its last notes


class KnownRoute(NamedTuple):
    """A route as it was."""

    id: str
    task: str
    events: tuple[str, ...]
    when: str  # its condition, as text or as its place; empty: none
    place: str  # the file and line that registers it
    grouping: str  # "coalesce", "batch of 100" or empty


class Kind(NamedTuple):
    """The data common to all changes of one table and event."""

    schema: str
    table: str
    event: str
    watching: tuple[KnownRoute, ...]  # that take the event
    others: tuple[KnownRoute, ...]  # that take other events of the table


class Transaction(NamedTuple):
    """The data common to all changes of one transaction."""

    id_head: str  # start of its changes' ids and positions, before the ordinal
    position_head: str
    committed: int  # microseconds since 1970
    context: bytes  # JSON, with null for a value that may not be shown; empty: none
    is_muted: bool


class Deed(NamedTuple):
    """A route that the change fired, or would have."""

    route: str  # its id; of an enqueued task the task's name
    fate: Fate
    detail: str = ""  # of a parked change: the kind of error


class Entry(NamedTuple):
    """One change, as the listener notes it."""

    transaction: Transaction
    ordinal: int
    kind: Kind
    deeds: tuple[Deed, ...]  # the other routes that watch it did not fire
    columns: tuple[str, ...] | None  # those that an update changed; None: unknown
    key: bytes  # JSON of the row's key; empty: unknown
    old_key: bytes = b""  # the key before the change, if different
    own_id: str = ""  # if it does not consist of transaction and ordinal
    coalesced: tuple[tuple[str, str], ...] = ()  # a route's id, and the change with which it was coalesced


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Changes that are not noted."""

    why: Why
    count: int | None  # None: unknown
    first: str = ""  # positions
    last: str = ""
    since: datetime | None = None  # the commits' times
    until: datetime | None = None
    tables: tuple[str, ...] = ()  # of a sample of them


class Noted(NamedTuple):
    """The outcome of a route, for display."""

    route: KnownRoute
    fate: Fate
    detail: str  # the kind of error of a parked change; the id of the change it was coalesced with


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedChange:
    """One change, as it is read."""

    id: str
    schema: str
    table: str  # of an enqueued task: its name
    event: EventType
    position: str
    committed_at: datetime
    context: Mapping[str, Any] | None  # None for a value that may not be shown
    key: Mapping[str, Any] | None
    old_key: Mapping[str, Any] | None
    columns: tuple[str, ...] | None
    routes: tuple[Noted, ...]  # all that watch the table


def microseconds(time: datetime) -> int:
    """Return a time in microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(micros: int) -> datetime:
    """Return the time from microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=micros)
