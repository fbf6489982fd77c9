"""Which change fires which task: pure, no I/O."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypedDict

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.arguments import (
    Args,
    ColumnArgs,
    Kwargs,
    arguments_json,
    kwargs_json,
)
from cdc_tasks.routing.checks import (
    check_callable,
    check_grouping,
    check_key,
    check_key_grouping,
    check_key_rows,
    check_name,
    check_on_full,
    check_rows,
    check_sending,
    is_name,
    read_args,
    read_columns,
    read_events,
    read_key,
    read_kwargs,
    sent_columns,
)
from cdc_tasks.routing.enqueued import MESSAGE_PREFIX, Accepted, EnqueuedArguments, enqueued_route
from cdc_tasks.routing.message_groups import OnFailure
from cdc_tasks.routing.predicates import When, became, changed
from cdc_tasks.routing.route import (
    GROW,
    MOST_REMEMBERED,
    PAUSE,
    SET_ASIDE,
    Call,
    Origin,
    Parked,
    Route,
    RouteIndex,
    is_glob,
    make_call,
    task_id,
)
from cdc_tasks.routing.tables import RouteError, table_of
from cdc_tasks.routing.tasks import Task, check_arguments, check_call, task_of
from cdc_tasks.source_lines import calling_place

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
        """The tasks that a transaction may enqueue."""
        return tuple(self._accepted)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of PostgreSQL's logical messages that the router reads."""
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

        `schema` and `table` are names or globs (`*`, `?`, `[…]`). `table` may be a SQLAlchemy or Django model; the
        model's own schema takes precedence over `schema`. `task` is a name, or the Celery task: then its signature is
        checked, and its own queue, priority and expires apply. `when(change)` decides whether it fires.

        `args` and `kwargs` are the task's arguments. Without both, the change is its only argument. `args` is a list of
        columns, or a function of the change that returns a list. `kwargs` is a list of columns, a mapping from
        parameters to columns, or a function that returns a dict. A change without the value of such a column is
        parked. `columns` limits the columns of the rows that are sent.

        With `coalesce`, changes with equal arguments fire one task. With `batch`, one task gets a list of up to `batch`
        changes, lists of `args`, or dicts of `kwargs`. `queue`, `countdown`, `priority` and `expires` are
        Celery's; the times are in seconds, from when the task is sent.

        `key` is a column, a list of columns, or a function that returns a value, a list of values or None. Tasks with
        the same key run one at a time, in the order of the commits. A change without the value of such a column is
        parked. Routes with the same `group` share their keys; without it each route has its own. `on_failure` decides
        what happens after a task that gives up: with "continue" the next task of the key runs; with "hold" the key
        waits until a person has replayed or dropped the dead letter.

        `on_full` decides what happens while the queue is longer than CDC_MAX_QUEUE. With "pause" the listener waits,
        with all routes. With "grow" the queue grows. With "set_aside" this route's messages wait in order beside the
        queue, up to CDC_MAX_SET_ASIDE, and the other routes continue. With `even_muted`, muted changes
        (`cdc_tasks.muted`) fire it too.

        Raises RouteError, with the wrong value and a hint.
        """
        own_schema, table = table_of(table) if table is not None else (None, table)
        schema, known = own_schema or schema, _task(task)
        task, queue = known.name, known.options.get("queue") if queue is None else queue
        priority = known.options.get("priority") if priority is None else priority
        expires = known.options.get("expires") if expires is None else expires
        check_name(schema=schema, table=table, task=task, queue="default" if queue is None else queue)
        check_callable(when=when)
        check_sending(countdown=countdown, priority=priority, expires=expires)
        check_on_full(task, on_full)
        check_key(task, key=key, group=group, on_failure=on_failure)
        check_key_grouping(task, key=key, group=group, coalesce=coalesce, batch=batch)
        wanted = read_events(events)
        positional, named = read_args(args), read_kwargs(kwargs)
        if named is not None and positional is None:
            positional = ColumnArgs(())
        check_grouping(task, coalesce=coalesce, batch=batch, args=positional, kwargs=named)
        check_rows(wanted, task, positional, named)
        check_key_rows(wanted, task, key)
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
            columns=sent_columns(read_columns(columns), positional, named),
            queue=queue,
            coalesce=coalesce,
            batch=batch,
            countdown=countdown,
            priority=priority,
            expires=expires,
            parameters=known.parameters if is_open else None,
            id=route_id,
            is_grouped=coalesce or batch is not None,
            key=read_key(key, group, route_id, is_glob=is_glob(schema, table)),
            on_failure=on_failure,
            on_full=on_full,
            even_muted=even_muted,
            place=calling_place(),
        )
        self._has_even_muted |= even_muted
        self._routes.append(route)
        self._index.add(route)
        self._by_kind.clear()
        return route

    def accept(self, *tasks: Any, prefix: str = MESSAGE_PREFIX) -> None:
        """Send these tasks when a transaction enqueues them (`cdc_tasks.enqueue`).

        A task is a name, a glob ("shop.*"), or the Celery task. All others are parked, so that write access to the
        database is not enough to run any task. `prefix` is that of PostgreSQL's logical messages, if a program writes
        its own.

        Raises RouteError.
        """
        if not tasks:
            raise RouteError("accept() needs a task.", hint='Write e.g. router.accept("shop.*").')
        if not is_name(prefix) or not prefix.isprintable() or "," in prefix:
            raise RouteError(
                f"prefix={prefix!r} is not a prefix of a logical message.", hint='Write e.g. prefix="shop".'
            )
        for each in tasks:
            known = _task(each)
            check_name(task=known.name)
            self._accepted.append(Accepted(known.name, prefix))
        self._by_kind.clear()

    def refresh_master_cache(
        self, schema: str, *tables: Any, columns: Iterable[str] | None = ("id",)
    ) -> list[Route]:
        """Refresh the master cache's keys of these tables after any change, once for many changes together.

        Name the tables as in `MasterCache.register`; `schema` is for names without one. The task reads the rows itself,
        so `columns` only limits what the source has to send; None: all.
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
        """Return a router in which a read fires these routes, whatever their events; they keep their ids."""
        twin = BinlogRouter()
        twin._routes = [replace(route, events=frozenset({EventType.READ})) for route in routes]
        twin._index = RouteIndex(twin._routes)
        return twin

    def for_replay(self, routes: Iterable[Route], replay: str) -> BinlogRouter:
        """Return a router with only these routes, whose messages name the replay; they keep their ids."""
        twin = BinlogRouter()
        twin._routes = [replace(route, replay=replay) for route in routes]
        twin._index = RouteIndex(twin._routes)
        twin._has_even_muted = True  # a journal may have muted changes for removed routes
        return twin

    def routes_for(self, kind: tuple[str, str, str]) -> tuple[Route, ...]:
        """Return the routes that watch this (schema, table, event), without calling `when`."""
        try:
            return self._by_kind[kind]
        except KeyError:
            found = self._find(kind)
            if len(self._by_kind) >= MOST_REMEMBERED:
                self._by_kind.clear()
            return self._by_kind.setdefault(kind, found)

    def _find(self, kind: tuple[str, str, str]) -> tuple[Route, ...]:
        schema, table, event = kind
        if event == EventType.ENQUEUED.value:
            return (enqueued_route(kind, self._accepted),)
        watching = self._index.watching(schema, table)
        return tuple(each for each in watching if event in each.events)

    def tasks_for(self, changes: Iterable[Change]) -> Iterator[Call | Parked]:
        """Yield what these changes fire, in their order."""
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
            if kind is not last:  # most changes have the same kind as the one before
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
                    yield make_call(fired)

    def _id(self, schema: str, table: str, events: frozenset[EventType], task: str) -> str:
        """Return a digest of what identifies the route; equal routes differ by their order."""
        names = (schema, table, events, task)
        name = "\0".join((schema, table, *sorted(events), task, str(self._alike[names])))
        self._alike[names] += 1
        while (digest := hashlib.blake2b(name.encode(), digest_size=4).hexdigest()) in self._ids:
            name += "\0"  # with thousands of routes, two digests may be equal
        self._ids.add(digest)
        return digest


@dataclass(frozen=True, slots=True)
class _Constant:
    """Arguments that are the same for every change."""

    values: tuple[str, ...]

    def __call__(self, _change: Change) -> Sequence[str]:
        return self.values

    def __repr__(self) -> str:
        return repr(list(self.values))


def _task(task: Any) -> Task:
    name: Any = task  # None is refused later, as a name
    return Task(name) if task is None else task_of(task)


def _called(route: Route, args: Args, change: Change) -> tuple[bytes, bytes]:
    """Return the arguments that `args` and `kwargs` of a route make from a change, as in Call."""
    positional: Any = args(change)
    if args.__class__ is EnqueuedArguments:
        return positional  # type: ignore[no-any-return]  # its own
    named: Any = None if route.kwargs is None else route.kwargs(change)
    listed = arguments_json(positional, route.task)
    named_json = b"" if named is None and route.kwargs is None else kwargs_json(named, route.task)
    if route.parameters is not None:
        check_arguments(route.task, route.parameters, positional, named or {})
    return listed, named_json
