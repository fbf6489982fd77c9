"""Which change fires which task: pure, no I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from inspect import Signature
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, TypedDict, TypeGuard

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.arguments import (
    Args,
    ColumnArgs,
    ColumnKwargs,
    Kwargs,
    arguments_json,
    kwargs_json,
    named_columns,
)
from cdc_tasks.routing.enqueued import MESSAGE_PREFIX, Accepted, check_accepted, prefix_of
from cdc_tasks.routing.keys import CalledKey, ColumnKey, Key
from cdc_tasks.routing.message_groups import OnFailure, check_group
from cdc_tasks.routing.predicates import When, became, changed
from cdc_tasks.routing.tables import RouteError, table_of
from cdc_tasks.routing.tasks import Task, check_arguments, check_call, task_of

__all__ = [
    "GROW",
    "PAUSE",
    "SET_ASIDE",
    "BinlogRouter",
    "Call",
    "EventType",
    "Origin",
    "Parked",
    "Route",
    "RouteError",
    "RouteIndex",
    "RouteOptions",
    "became",
    "changed",
    "enqueued_route",
    "task_id",
]

# What a route does while its queue is longer than CDC_MAX_QUEUE.
PAUSE: Final = "pause"  # the listener waits, with all routes
GROW: Final = "grow"  # the queue grows
SET_ASIDE: Final = "set_aside"  # the route's messages wait beside the queue; other routes go on
_ON_FULL: Final = (PAUSE, GROW, SET_ASIDE)

_EVERY_CHANGE: Final = frozenset({EventType.INSERT, EventType.UPDATE, EventType.DELETE, EventType.TRUNCATE})
_NOT_FOR_ROUTES: Final = frozenset({EventType.ENQUEUED})
_HIGHEST_PRIORITY: Final = 255
_LONGEST: Final = 1e8  # seconds: three years


class RouteOptions(TypedDict, total=False):
    """The options of a route, for `BinlogRouter.register` and `on_change`."""

    when: When | None
    args: Args | Sequence[str] | None
    kwargs: Kwargs | Mapping[str, str] | Sequence[str] | None
    columns: Iterable[str] | None
    queue: str | None
    coalesce: bool
    batch: int | None
    countdown: float | None
    priority: int | None
    expires: float | None
    key: str | Sequence[str] | Callable[[Change], Any] | None
    group: str | None
    on_failure: OnFailure
    on_full: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Changes of some tables that fire one task."""

    schema: str  # a name, or a glob
    table: str  # a name, or a glob
    events: frozenset[EventType]
    task: str
    when: When | None = field(hash=False)  # a user's object: it may have no hash
    args: Args | None = field(hash=False)  # None: the change itself is the task's one argument
    kwargs: Kwargs | None = field(default=None, hash=False)
    columns: tuple[str, ...] | None  # None: all
    queue: str | None  # None: the task's own, or the one of Celery's task_routes
    coalesce: bool
    batch: int | None
    countdown: float | None = None  # seconds from sending until the task is due
    priority: int | None = None  # None: the task's own, or the one of Celery's settings
    expires: float | None = None  # seconds from sending; later no worker runs the task
    parameters: Signature | None = field(
        default=None, hash=False, compare=False
    )  # of the task, if it is checked
    id: str  # identifies the route in task ids, also after the routes are reordered; "": the task has an id of its own
    is_grouped: bool  # has coalesce or batch
    key: Key | None = field(default=None, hash=False)  # None: its tasks have no order
    on_failure: OnFailure = "continue"  # what a task that gives up does to its key
    even_muted: bool = False  # changes that their transaction mutes fire it too
    on_full: str = PAUSE  # what to do while the queue is longer than CDC_MAX_QUEUE
    # Further options of `apply_async`, which only an enqueued task has.
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    replay: str | None = None  # the id of the replay that fires it; its messages say so
    sent_as: tuple[Any, ...] = field(init=False, repr=False, compare=False)  # equal: so are the messages

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
        if not self.id:  # an enqueued task's: the schema has its options
            sent_as = "", self.task, self.schema
        object.__setattr__(self, "sent_as", sent_as)

    def matches(self, schema: str, table: str) -> bool:
        """Return whether the route watches this table."""
        return fnmatchcase(schema, self.schema) and fnmatchcase(table, self.table)


class RouteIndex:
    """Finds the routes that watch a table, without trying each route.

    A route is stored under the part of its names before the first wildcard. A lookup takes the table's name and each
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
        """Add a route, after those that were added before."""
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
            if len(self._found) >= _MOST_REMEMBERED:
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
_MOST_REMEMBERED: Final = 20_000  # names of tables


def _joined(schema: str, table: str) -> str:
    return f"{schema}\0{table}"  # no name has a zero byte


class Origin(NamedTuple):
    """The change that a task is named after, when only its id and position are still needed."""

    kind: tuple[str, str, str]  # schema, table, event's value
    stamp: tuple[bytes, bytes]  # id and position, encoded

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
        """The task's id: from the change's id and the route's, so that a replayed task has the id that it had."""
        return task_id(self.change.id, self.route)


def task_id(change_id: str, route: Route) -> str:
    """Return the id of the task that a change fires by a route; an enqueued task has its own."""
    return f"{change_id}-{route.id}" if route.id else change_id


_call = partial(tuple.__new__, Call)  # half the time of `Call(…)`


class Parked(NamedTuple):
    """A change that a route or the broker could not take: kept until a person replays or drops it."""

    route: Route
    change: Change | Origin
    error: Exception
    rendered: bytes | None = None  # the task's arguments, as in Call, if only an Origin is left
    rendered_kwargs: bytes = b""  # the same of its keyword arguments
    key: str | None = None  # the same of its message group


class BinlogRouter:
    """The table of routes. A change fires every route that matches it, in the order of registration."""

    def __init__(self) -> None:
        self._routes: list[Route] = []
        self._has_even_muted = False  # a route asks for muted changes
        self._index = RouteIndex()
        self._alike: Counter[tuple[str, str, frozenset[EventType], str]] = Counter()
        self._ids: set[str] = set()
        self.declared: set[tuple[Any, ...]] = set()  # what `router_of` has added
        self._by_kind: dict[tuple[str, str, str], tuple[Route, ...]] = {}
        self._accepted: list[Accepted] = []

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """Which tasks a transaction may enqueue."""
        return tuple(self._accepted)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of PostgreSQL's logical messages that are for us."""
        return tuple(dict.fromkeys([MESSAGE_PREFIX, *(each.prefix for each in self._accepted)]))

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes, in the order of registration."""
        return tuple(self._routes)

    def register(
        self,
        schema: str,
        table: Any,
        events: Iterable[EventType | str] | EventType | str,
        task: Any,
        *,
        when: When | None = None,
        args: Args | Sequence[str] | None = None,
        kwargs: Kwargs | Mapping[str, str] | Sequence[str] | None = None,
        columns: Iterable[str] | None = None,
        queue: str | None = None,
        coalesce: bool = False,
        batch: int | None = None,
        countdown: float | None = None,
        priority: int | None = None,
        expires: float | None = None,
        key: str | Sequence[str] | Callable[[Change], Any] | None = None,
        group: str | None = None,
        on_failure: OnFailure = "continue",
        on_full: str = PAUSE,
        even_muted: bool = False,
    ) -> Route:
        """Fire `task` on `events` of the tables that match.

        `schema` and `table` are names or globs (`*`, `?`, `[…]`). `table` may be a model of SQLAlchemy's or Django's; a
        schema of its own goes before `schema`. `task` is a name, or Celery's task: then its signature is checked, and
        its own queue, priority and expires count. `when(change)` decides whether it fires.

        `args` and `kwargs` are what the task is called with. Without both the change is its one argument. `args` is a
        list of columns, or a function of the change that returns a list. `kwargs` is a list of columns, a mapping
        from parameters to columns, or a function that returns a dict. A change without the value of such a column is
        parked. `columns` limits the rows that are sent.

        With `coalesce`, changes with equal arguments fire one task. With `batch`, one task gets a list of up to that
        many changes, lists of `args`, or dicts of `kwargs`. `queue`, `countdown`, `priority` and `expires` are
        Celery's; the times are in seconds, from when the task is sent.

        `key` is a column, a list of columns, or a function that returns a value, a list of values or None. Tasks with
        the same key run one at a time, in the order of the commits. A change without the value of such a column is
        parked. Routes with the same `group` share their keys; without it each route has its own. `on_failure`: after a
        task that gives up, "continue" lets its key go on, and "hold" waits until a person has replayed or dropped the
        dead letter.

        `on_full` says what happens while the queue is longer than CDC_MAX_QUEUE: "pause" makes the listener wait, with
        all routes; "grow" lets the queue grow; "set_aside" keeps this route's messages in order beside the queue, up to
        CDC_MAX_SET_ASIDE, and the other routes go on. With `even_muted`, changes that their transaction mutes
        (`cdc_tasks.muted`) fire it, too.

        Raises RouteError, with the wrong value and a hint.
        """
        own_schema, table = table_of(table) if table is not None else (None, table)
        schema, known = own_schema or schema, _task(task)
        task, queue = known.name, known.options.get("queue") if queue is None else queue
        priority = known.options.get("priority") if priority is None else priority
        expires = known.options.get("expires") if expires is None else expires
        _check_name(schema=schema, table=table, task=task, queue="default" if queue is None else queue)
        _check_callable(when=when)
        _check_sending(countdown=countdown, priority=priority, expires=expires)
        _check_on_full(task, on_full)
        _check_key(task, key=key, group=group, on_failure=on_failure)
        _check_key_grouping(task, key=key, group=group, coalesce=coalesce, batch=batch)
        wanted = _events(events)
        positional, named = _args(args), _kwargs(kwargs)
        if named is not None and positional is None:
            positional = ColumnArgs(())
        _check_grouping(task, coalesce=coalesce, batch=batch, args=positional, kwargs=named)
        _check_rows(wanted, task, positional, named)
        _check_key_rows(wanted, task, key)
        route_id = self._id(schema, table, wanted, task)
        is_open = check_call(known, args=positional, kwargs=named, batch=batch)
        route = Route(
            schema=schema,
            table=table,
            events=wanted,
            task=task,
            when=when,
            args=positional,
            kwargs=named,
            columns=_sent(_columns(columns), positional, named),
            queue=queue,
            coalesce=coalesce,
            batch=batch,
            countdown=countdown,
            priority=priority,
            expires=expires,
            parameters=known.parameters if is_open else None,
            id=route_id,
            is_grouped=coalesce or batch is not None,
            key=_key(key, group, route_id, is_glob=_WILDCARD.search(_joined(schema, table)) is not None),
            on_failure=on_failure,
            on_full=on_full,
            even_muted=even_muted,
        )
        self._has_even_muted |= even_muted
        self._routes.append(route)
        self._index.add(route)
        self._by_kind.clear()
        return route

    def accept(self, *tasks: Any, prefix: str = MESSAGE_PREFIX) -> None:
        """Send these tasks when a transaction enqueues them (`cdc_tasks.enqueue`).

        A task is a name, a glob ("shop.*"), or Celery's task. All others are parked: who can write to the database does
        not thereby run any task. `prefix` is that of PostgreSQL's logical messages, if a program writes its own.

        Raises RouteError.
        """
        if not tasks:
            raise RouteError("accept() names no task.", hint='Write e.g. router.accept("shop.*").')
        if not _is_name(prefix) or not prefix.isprintable() or "," in prefix:
            raise RouteError(
                f"prefix={prefix!r} is no prefix of a logical message.", hint='Write e.g. prefix="shop".'
            )
        for each in tasks:
            known = _task(each)
            _check_name(task=known.name)
            self._accepted.append(Accepted(known.name, prefix))
        self._by_kind.clear()

    def refresh_master_cache(
        self, schema: str, *tables: Any, columns: Iterable[str] | None = ("id",)
    ) -> list[Route]:
        """Refresh the master cache's keys of these tables after any change of them, once for many changes at a time.

        A table is named as `MasterCache.register` has it; `schema` is for those without one. The task reads the rows,
        so `columns` are only what the source has to send; None: all.
        """
        routes = []
        for table in tables:
            own_schema, name = table_of(table)
            routes.append(
                self.register(
                    own_schema or schema,
                    name,
                    EventType.ALL,
                    "cdc_tasks.refresh_master_cache",
                    args=_Constant((f"{own_schema}.{name}" if own_schema else name,)),
                    columns=columns,
                    coalesce=True,
                )
            )
        return routes

    def copy(self) -> BinlogRouter:
        """Return a router with the same routes, which keep their ids."""
        twin = BinlogRouter()
        twin._routes = list(self._routes)
        twin._index = RouteIndex(self._routes)
        twin._alike = self._alike.copy()
        twin._ids = set(self._ids)
        twin._accepted = list(self._accepted)
        twin.declared = set(self.declared)
        return twin

    def for_reads(self, routes: Iterable[Route]) -> BinlogRouter:
        """Return a router in which a read fires these routes, whatever their events are; they keep their ids."""
        twin = BinlogRouter()
        twin._routes = [replace(route, events=frozenset({EventType.READ})) for route in routes]
        twin._index = RouteIndex(twin._routes)
        return twin

    def for_replay(self, routes: Iterable[Route], replay: str) -> BinlogRouter:
        """Return a router with only these routes, whose messages name the replay; they keep their ids."""
        twin = BinlogRouter()
        twin._routes = [replace(route, replay=replay) for route in routes]
        twin._index = RouteIndex(twin._routes)
        twin._has_even_muted = True  # a journal may have muted changes for routes that are gone
        return twin

    def routes_for(self, kind: tuple[str, str, str]) -> tuple[Route, ...]:
        """Return the routes that watch this (schema, table, event), before their `when` decides."""
        try:
            return self._by_kind[kind]
        except KeyError:
            found = self._find(kind)
            if len(self._by_kind) >= _MOST_REMEMBERED:
                self._by_kind.clear()
            return self._by_kind.setdefault(kind, found)

    def _find(self, kind: tuple[str, str, str]) -> tuple[Route, ...]:
        schema, table, event = kind
        if event == EventType.ENQUEUED.value:
            return (enqueued_route(kind, self._accepted),)
        watching = self._index.watching(schema, table)
        return tuple(each for each in watching if event in each.events)

    def tasks_for(self, changes: Iterable[Change]) -> Iterator[Call | Parked]:
        """Return what these changes fire, in their order."""
        if not self._has_even_muted:  # then no change is muted
            return self._tasks_for(changes)
        return self._tasks_for_some_muted(changes)

    def _tasks_for_some_muted(self, changes: Iterable[Change]) -> Iterator[Call | Parked]:
        for is_muted, alike in groupby(changes, key=attrgetter("is_muted")):
            for fired in self._tasks_for(alike):
                if fired.route.even_muted or not is_muted:
                    yield fired

    def _tasks_for(self, changes: Iterable[Change]) -> Iterator[Call | Parked]:
        last: tuple[str, str, str] | None = None
        routes: tuple[Route, ...] = ()
        for change in changes:
            kind = change.kind
            if kind is not last:  # most are like the one before
                routes, last = self.routes_for(kind), kind
            for route in routes:
                when, args = route.when, route.args
                try:
                    if when is not None and not when(change):
                        continue
                    key = None if route.key is None else route.key(change)
                    if args is None:
                        fired = route, change, change.to_json(route.columns), b"", key
                    else:
                        fired = route, change, *_called(route, args, change), key
                except Exception as error:  # noqa: BLE001 - a user's code may raise anything: the change is kept
                    yield Parked(route, change, error)
                else:
                    yield _call(fired)

    def _id(self, schema: str, table: str, events: frozenset[EventType], task: str) -> str:
        """Return a digest of what identifies the route; routes that are equal in it differ by their order."""
        names = (schema, table, events, task)
        name = "\0".join((schema, table, *sorted(events), task, str(self._alike[names])))
        self._alike[names] += 1
        while (digest := hashlib.blake2b(name.encode(), digest_size=4).hexdigest()) in self._ids:
            name += "\0"  # among thousands of routes two digests may be equal
        self._ids.add(digest)
        return digest


def enqueued_route(kind: tuple[str, str, str], accepted: Sequence[Accepted] | None = None) -> Route:
    """Return the route by which an enqueued task of this kind is sent; None: of one that was accepted before.

    If none of them accepts the task, it parks it.
    """
    said, task, _ = kind
    options: dict[str, Any] = json.loads(said) if said else {}
    options.pop("prefix", None)
    is_keyed, on_failure = "on_failure" in options, options.pop("on_failure", "continue")
    expires = options.pop("expires") if isinstance(options.get("expires"), int | float) else None
    named = {name: options.pop(name, None) for name in ("queue", "countdown", "priority")}
    return Route(
        schema=said,
        table=task,
        events=_NOT_FOR_ROUTES,
        task=task,
        when=None,
        args=_Enqueued(task, prefix_of(kind), accepted),
        columns=None,
        coalesce=False,
        batch=None,
        expires=expires,
        id="",
        is_grouped=False,
        key=_key_of_enqueued if is_keyed else None,
        on_failure=on_failure,
        options=options,
        **named,
    )


def _key_of_enqueued(change: Any) -> str | None:
    key: str | None = change.key
    return key


@dataclass(frozen=True, slots=True)
class _Enqueued:
    """Stands for the arguments that an enqueued task brings along."""

    task: str
    prefix: str
    accepted: Sequence[Accepted] | None

    def __call__(self, change: Any) -> Any:
        """Return them as JSON, as Call has them; raise what is wrong with the task, or TaskNotAcceptedError."""
        if change.error is not None:
            raise change.error
        if self.accepted is not None:
            check_accepted(self.task, self.prefix, self.accepted)
        return change.arguments, change.kwargs


@dataclass(frozen=True, slots=True)
class _Constant:
    """Arguments that are the same for every change."""

    values: tuple[str, ...]

    def __call__(self, _change: Change) -> Sequence[str]:
        return self.values

    def __repr__(self) -> str:
        return repr(list(self.values))


def _task(task: Any) -> Task:
    name: Any = task  # None is refused as a name
    return Task(name) if task is None else task_of(task)


def _check_name(**names: object) -> None:
    for what, name in names.items():
        if not _is_name(name):
            raise RouteError(
                f"{what}={name!r} is no name.", hint=f"Give the route a {what} that is not empty."
            )


def _check_callable(**functions: object) -> None:
    for what, function in functions.items():
        if function is not None and not callable(function):
            raise RouteError(f"{what}={function!r} cannot be called.", hint=f"Write {what}=lambda change: …")


def _check_sending(*, countdown: object, priority: object, expires: object) -> None:
    for what, seconds in (("countdown", countdown), ("expires", expires)):
        if seconds is not None and not _is_duration(seconds):
            raise RouteError(f"{what}={seconds!r} is no number of seconds.", hint=f"Write e.g. {what}=60.")
    if priority is not None and not (_is_integer(priority) and 0 <= priority <= _HIGHEST_PRIORITY):
        raise RouteError(
            f"priority={priority!r} is no priority.",
            hint="Redis takes 0 to 9, and 0 goes first. RabbitMQ takes 0 up to x-max-priority of the queue, and 0"
            " goes last.",
        )


def _check_rows(events: frozenset[EventType], task: str, args: Args | None, kwargs: Kwargs | None) -> None:
    """Refuse a route that passes columns of a row when a table is truncated: there is no row."""
    found = {"args": args, "kwargs": kwargs}
    for what, each in found.items():
        if EventType.TRUNCATE in events and isinstance(each, ColumnArgs | ColumnKwargs) and each.columns:
            raise RouteError(
                f"The route to {task} passes {what}={each!r} also at a TRUNCATE, which has no row.",
                hint="Name the events: [EventType.INSERT, EventType.UPDATE, EventType.DELETE].\n"
                f"Or give {what}= a function that knows a truncate: {what}=lambda change: …",
            )


def _check_key(task: str, *, key: object, group: object, on_failure: object) -> None:
    if key is None and (group is not None or on_failure != "continue"):
        raise RouteError(
            f"The route to {task} has group= or on_failure=, but no key=.",
            hint='Give it a key, e.g. key="id".',
        )
    if on_failure not in {"continue", "hold"}:
        raise RouteError(
            f"on_failure={on_failure!r} of the route to {task} is unknown.",
            hint='Use "continue" or "hold".',
        )
    if key is not None and not callable(key):
        _named("key", [key] if isinstance(key, str) else key)
    if group is not None:
        check_group(group)


def _check_key_grouping(task: str, *, key: object, group: object, coalesce: bool, batch: int | None) -> None:
    if key is not None and coalesce:
        raise RouteError(
            f"The route to {task} has both key and coalesce.",
            hint="Leave one out: a coalesced task stands for changes of many keys.",
        )
    if group is not None and batch is not None:
        raise RouteError(
            f"The route to {task} has both group and batch.",
            hint="Leave one out: while a batch is being filled, later tasks of the other routes would run first.",
        )


def _check_key_rows(events: frozenset[EventType], task: str, key: object) -> None:
    if EventType.TRUNCATE in events and key is not None and not callable(key):
        raise RouteError(
            f"The route to {task} has key={key!r} also at a TRUNCATE, which has no row.",
            hint="Name the events: [EventType.INSERT, EventType.UPDATE, EventType.DELETE].\n"
            "Or give key= a function that returns None for a truncate: key=lambda change: …",
        )


def _key(key: Any, group: str | None, route_id: str, *, is_glob: bool) -> Key | None:
    if key is None:
        return None
    name, many = group or route_id, is_glob and group is None
    if callable(key):
        return CalledKey(name, key, many)
    return ColumnKey(name, (key,) if isinstance(key, str) else tuple(key), many)


def _check_grouping(
    task: str, *, coalesce: bool, batch: int | None, args: Args | None, kwargs: Kwargs | None
) -> None:
    if batch is not None and not _is_count(batch):
        raise RouteError(
            f"batch={batch!r} of the route to {task} is no number of changes.", hint="Write e.g. batch=500."
        )
    if coalesce and batch is not None:
        raise RouteError(f"The route to {task} has both coalesce and batch.", hint="Leave one out.")
    if coalesce and args is None:
        raise RouteError(
            f"The route to {task} has coalesce=True but no args=, so no two of its tasks would be equal.",
            hint="Give it the arguments to coalesce on, e.g. args=lambda change: [change.table].",
        )
    if batch is not None and kwargs is not None and args != ColumnArgs(()):
        raise RouteError(
            f"The route to {task} has batch, args and kwargs: its task gets one list.",
            hint="Leave out args=, and the list is of dicts; or kwargs=, and it is of lists.",
        )


def _args(args: object) -> Args | None:
    if args is None or callable(args):
        return args
    if isinstance(args, Mapping):
        raise RouteError(f"args={args!r} has names of parameters.", hint=f"Write kwargs={args!r}.")
    return ColumnArgs(_named("args", args))


def _kwargs(kwargs: object) -> Kwargs | None:
    if kwargs is None or callable(kwargs):
        return kwargs
    if isinstance(kwargs, Mapping):
        return ColumnKwargs(_named("kwargs", list(kwargs)), _named("kwargs", list(kwargs.values())))
    names = _named("kwargs", kwargs)
    if len(set(names)) < len(names):
        raise RouteError(f"kwargs={kwargs!r} has a name twice.", hint="Name each column once.")
    return ColumnKwargs(names, names)


def _named(what: str, names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(map(_is_name, names)) or (what != "args" and not names):
        raise RouteError(
            f"{what}={names!r} are no names of columns.",
            hint=f'Write e.g. {what}=["id"], or {what}=lambda change: …',
        )
    return tuple(names)


def _sent(
    columns: tuple[str, ...] | None, args: Args | None, kwargs: Kwargs | None
) -> tuple[str, ...] | None:
    """Return the columns that the source has to send; None: all."""
    named = () if args is None else named_columns(args, kwargs)
    if columns is None:
        return named or None
    return tuple(dict.fromkeys([*columns, *(named or ())]))


def _check_on_full(task: str, on_full: str) -> None:
    if on_full not in _ON_FULL:
        known = ", ".join(f'"{each}"' for each in _ON_FULL)
        raise RouteError(
            f"on_full={on_full!r} of the route to {task} is no known policy.", hint=f"Use one of {known}."
        )


def _events(events: Iterable[EventType | str] | EventType | str) -> frozenset[EventType]:
    names = [events] if isinstance(events, str) else list(events)
    try:
        found = frozenset(EventType(name) for name in names)
    except ValueError:
        known = ", ".join(f"EventType.{each.name}" for each in EventType)
        raise RouteError(f"events={events!r} names no known event.", hint=f"Use some of {known}.") from None
    if unfit := found & _NOT_FOR_ROUTES:
        raise RouteError(
            f"events={events!r}: a route cannot have EventType.{next(iter(unfit)).name}.",
            hint='For tasks that a transaction enqueues: router.accept("shop.*").',
        )
    if not found:
        raise RouteError("events=[] would never fire.", hint="Name an event, or use EventType.ALL.")
    return _EVERY_CHANGE | (found & {EventType.READ}) if EventType.ALL in found else found


def _columns(columns: Iterable[str] | None) -> tuple[str, ...] | None:
    if columns is None:
        return None
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if not names or not all(map(_is_name, names)):
        raise RouteError(
            f"columns={columns!r} are no names of columns.", hint='Write e.g. columns=["id", "status"].'
        )
    return tuple(dict.fromkeys(names))


def _called(route: Route, args: Args, change: Change) -> tuple[bytes, bytes]:
    """Return what `args` and `kwargs` of a route make of a change, as a Call has it."""
    positional: Any = args(change)
    if args.__class__ is _Enqueued:
        return positional  # type: ignore[no-any-return]  # its own
    named: Any = None if route.kwargs is None else route.kwargs(change)
    listed = arguments_json(positional, route.task)
    named_json = b"" if named is None and route.kwargs is None else kwargs_json(named, route.task)
    if route.parameters is not None:
        check_arguments(route.task, route.parameters, positional, named or {})
    return listed, named_json


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 1


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST
