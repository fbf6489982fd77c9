"""Routes, the index that finds them, and the calls that they fire."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from inspect import Signature
from operator import itemgetter
from typing import Any, Final, NamedTuple

from cdc_tasks.changes import Change, Commit, EventType, KnownCommit
from cdc_tasks.routing.arguments import Args, Kwargs
from cdc_tasks.routing.keys import Key
from cdc_tasks.routing.message_groups import OnFailure
from cdc_tasks.routing.predicates import When

__all__ = [
    "GROW",
    "MOST_REMEMBERED",
    "PAUSE",
    "SET_ASIDE",
    "Call",
    "Origin",
    "Parked",
    "Route",
    "RouteIndex",
    "is_glob",
    "make_call",
    "task_id",
]

# What a route does while its queue is longer than CDC_MAX_QUEUE.
PAUSE: Final = "pause"  # the listener waits, with all routes
GROW: Final = "grow"  # the queue grows
SET_ASIDE: Final = "set_aside"  # the route's messages wait beside the queue; other routes continue


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Changes of some tables that fire one task."""

    schema: str  # a name, or a glob
    table: str  # a name, or a glob
    events: frozenset[EventType]
    task: str
    when: When | None = field(hash=False)  # a user's object, which may not be hashable
    args: Args | None = field(hash=False)  # None: the change itself is the task's only argument
    kwargs: Kwargs | None = field(default=None, hash=False)
    columns: tuple[str, ...] | None  # None: all
    queue: str | None  # None: the task's own, or the one of Celery's task_routes
    coalesce: bool
    batch: int | None
    countdown: float | None = None  # seconds from sending until the task is due
    priority: int | None = None  # None: the task's own, or the one of Celery's settings
    expires: float | None = None  # seconds from sending; no worker runs the task later than that
    parameters: Signature | None = field(
        default=None, hash=False, compare=False
    )  # of the task, if it is checked
    id: str  # identifies the route in task ids, even after the routes are reordered; "": the task has its own id
    is_grouped: bool  # has coalesce or batch
    key: Key | None = field(default=None, hash=False)  # None: its tasks have no order
    on_failure: OnFailure = "continue"  # what happens to the key after a task that gives up
    even_muted: bool = False  # muted changes fire it too
    on_full: str = PAUSE  # what to do while the queue is longer than CDC_MAX_QUEUE
    # More options of `apply_async`, only for an enqueued task.
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    replay: str | None = None  # the id of the replay that fires it; its messages name it
    place: str = field(default="", compare=False)  # the file and line that registers it
    sent_as: tuple[Any, ...] = field(
        init=False, repr=False, compare=False
    )  # routes for which it is equal send equal messages

    def __post_init__(self) -> None:
        sent_as: tuple[Any, ...] = (
            self.id,
            self.queue,
            self.countdown,
            self.priority,
            self.expires,
            self.on_failure,
            self.replay,
        )
        if not self.id:  # of an enqueued task: the schema has its options
            sent_as = "", self.task, self.schema
        object.__setattr__(self, "sent_as", sent_as)

    def matches(self, schema: str, table: str) -> bool:
        """Return whether the route watches this table."""
        return fnmatchcase(schema, self.schema) and fnmatchcase(table, self.table)


class RouteIndex:
    """Finds the routes that watch a table without trying each route.

    A route is stored under the part of its names before the first wildcard. A lookup tries the table's name and each
    prefix of it, so its cost grows with the length of the name, not with the number of routes. Only routes whose globs
    have the same prefix are tried one by one.
    """

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._exact: dict[str, list[_Numbered]] = {}
        self._globs: dict[str, list[_Numbered]] = {}
        self._count = 0
        self._found: dict[tuple[str, str], tuple[Route, ...]] = {}
        for route in routes:
            self.add(route)

    def add(self, route: Route) -> None:
        """Add a route after the existing ones."""
        name = _joined(route.schema, route.table)
        wildcard = _WILDCARD.search(name)
        routes, place = (self._exact, name) if wildcard is None else (self._globs, name[: wildcard.start()])
        routes.setdefault(place, []).append((self._count, route))
        self._count += 1
        self._found.clear()

    def watching(self, schema: str, table: str) -> tuple[Route, ...]:
        """Return the routes that watch this table, in the order in which they were added."""
        try:
            return self._found[schema, table]
        except KeyError:
            if len(self._found) >= MOST_REMEMBERED:
                self._found.clear()
            return self._found.setdefault((schema, table), self._find(schema, table))

    def _find(self, schema: str, table: str) -> tuple[Route, ...]:
        name = _joined(schema, table)
        found = list(self._exact.get(name, ()))
        for end in range(len(name) + 1) if self._globs else ():
            alike = self._globs.get(name[:end], ())
            found += (each for each in alike if each[1].matches(schema, table))
        return tuple(route for _, route in sorted(found, key=itemgetter(0)))


_Numbered = tuple[int, Route]
_WILDCARD: Final = re.compile(r"[*?[]")
MOST_REMEMBERED: Final = 20_000  # names of tables


def is_glob(schema: str, table: str) -> bool:
    """Return whether one of the names has a wildcard."""
    return _WILDCARD.search(_joined(schema, table)) is not None


def _joined(schema: str, table: str) -> str:
    return f"{schema}\0{table}"  # no name has a zero byte


class Origin(NamedTuple):
    """The change from which a task's id is made, when only its id and position are still needed."""

    kind: tuple[str, str, str]  # schema, table, event's value
    stamp: tuple[bytes, bytes]  # id and position, encoded
    commit: Commit = KnownCommit()

    @property
    def id(self) -> str:
        return self.stamp[0].decode()

    @property
    def position(self) -> str:
        return self.stamp[1].decode()


class Call(NamedTuple):
    """One route fired by one change, or by several changes together."""

    route: Route
    change: Change | Origin
    arguments: bytes  # JSON of the task's positional arguments, without the list's brackets
    kwargs: bytes = b""  # JSON of its keyword arguments, without the object's braces
    key: str | None = None  # of its message group

    @property
    def id(self) -> str:
        """The task's id, made from the ids of the change and the route: a replayed task keeps its id."""
        return task_id(self.change.id, self.route)


def task_id(change_id: str, route: Route) -> str:
    """Return the id of the task that a change fires through a route; an enqueued task has its own."""
    return f"{change_id}-{route.id}" if route.id else change_id


make_call = partial(tuple.__new__, Call)  # half the time of `Call(…)`


class Parked(NamedTuple):
    """A change that failed in a route or at the broker, kept until a person replays or drops it."""

    route: Route
    change: Change | Origin
    error: Exception
    rendered: bytes | None = None  # the task's arguments, as in Call, if only an Origin is left
    rendered_kwargs: bytes = b""  # likewise the keyword arguments
    key: str | None = None  # likewise the key of its message group
