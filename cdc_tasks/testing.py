"""For tests of your routes: changes without a database, and what they fire without a broker.

def test_closing_a_ticket_tells_its_author():
    change = row_change("tickets", "update", before={"status": "open"}, after={"status": "closed"})
    assert_fires(setup_router(), change, "myapp.tell_author")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from inspect import signature
from itertools import count
from typing import Any, Protocol

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.routing.enqueued import observers
from cdc_tasks.routing.message_groups import OnFailure, bounded_key, text_of_values
from cdc_tasks.words import counted

__all__ = ["Enqueued", "Fired", "assert_fires", "assert_fires_nothing", "enqueued_tasks", "row_change"]

_numbers = count(1)


class _Router(Protocol):
    """The part of `cdc_tasks.routing.router.BinlogRouter` that is used here."""

    def tasks_for(self, changes: Iterable[Change]) -> Iterable[Any]: ...


def row_change(
    table: str,
    event: EventType | str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    schema: str = "public",
    unavailable: Sequence[str] = (),
    committed_at: datetime | None = None,
    identity: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    number: int = 1,
    is_last: bool = True,
) -> RowChange:
    """Return a change as the listener would make it. Each has its own id, and a later position than the one before.

    `table` and `schema` are names, and `event` is an `EventType` or its value. `before` and `after` are the old and
    the new row. `unavailable` are the columns whose value the source did not send. `committed_at` is now by default.

    `identity` are the columns of the table's replica identity, usually its primary key; None: all columns, as with
    REPLICA IDENTITY FULL. The old row has only these.

    `context` is that of its transaction (`cdc_tasks.context`). `number` and `is_last` are its place in the transaction,
    `change.transaction`.

    Raises ValueError if the rows do not fit the event: an insert and a read have no `before`, a delete has no `after`,
    an update has an `after`, a truncate has neither. Also raises it if `before` has a column that is not in `identity`.
    """
    kind = EventType(event)
    _check_rows(kind, before, after)
    _check_identity(before, identity)
    place = next(_numbers)
    return RowChange(
        id=f"test-{place:X}-{number - 1}",
        schema=schema,
        table=table,
        event=kind,
        before=before,
        after=after,
        unavailable=tuple(unavailable),
        position=f"0/{place * 8:X}:{number - 1}",
        committed_at=committed_at or datetime.now(UTC),
        context=context,
        is_last=is_last,
    )


def assert_fires(
    router: _Router,
    change: Change,
    task: Any,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    key: Any = None,
    group: str | None = None,
    on_failure: OnFailure | None = None,
    times: int = 1,
    app: Any = None,
) -> None:
    """Raise AssertionError, with what did fire, unless `change` fires `task` exactly `times` times.

    `router` has the routes. `task` is a name, or the Celery task. With `args` or `kwargs`, only calls with these
    arguments count. With `key` (a value, or several in a tuple), `group` or `on_failure`, only calls whose message has
    these count. With `app`, or with a task that is given as an object, it also fails if there is no such task, or if
    the task does not take the arguments.
    """
    fired = [Fired.of(each) for each in router.tasks_for([change])]
    order = WantedOrder(key=key, group=group, on_failure=on_failure)
    routes = getattr(router, "routes", ())
    check_fired(
        fired, task, args=args, kwargs=kwargs, order=order, times=times,
        title=_title(change), routes=routes, app=app,
    )  # fmt: skip


def assert_fires_nothing(router: _Router, change: Change) -> None:
    """Raise AssertionError, with what did fire, if `change` fires any task."""
    fired = [Fired.of(each) for each in router.tasks_for([change])]
    if fired:
        raise AssertionError(f"{_title(change)} should not fire anything. {_described(fired)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """One call of `cdc_tasks.enqueue`, as the message in the log has it."""

    task: str
    id: str
    args: list[Any]
    kwargs: dict[str, Any]
    key: list[Any] | None  # of its message group: the group's name, and the values
    options: dict[str, Any]


@contextmanager
def enqueued_tasks() -> Iterator[list[Enqueued]]:
    """Record each call of `cdc_tasks.enqueue` in the block, even if its transaction is rolled back.

    The calls run as usual, so they need a real connection.
    """
    found: list[Enqueued] = []

    def observe(said: Mapping[str, Any]) -> None:
        found.append(
            Enqueued(
                task=said["task"],
                id=said["id"],
                args=said.get("args", []),
                kwargs=said.get("kwargs", {}),
                key=said.get("key"),
                options=said.get("options", {}),
            )
        )

    observers.append(observe)
    try:
        yield found
    finally:
        observers.remove(observe)


def _check_rows(event: EventType, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    if event is EventType.ALL:
        raise ValueError(
            "event=all is for routes; a change is an insert, an update, a delete, a truncate or a read"
        )
    if before is not None and event in {EventType.INSERT, EventType.READ, EventType.TRUNCATE}:
        raise ValueError(f"before={before!r}: {event} has no old row")
    if after is not None and event in {EventType.DELETE, EventType.TRUNCATE}:
        raise ValueError(f"after={after!r}: {event} has no new row")
    if after is None and event in {EventType.INSERT, EventType.READ, EventType.UPDATE}:
        raise ValueError(f"after=None: {event} has a new row")


def _check_identity(before: Mapping[str, Any] | None, identity: Sequence[str] | None) -> None:
    if identity is None or before is None:
        return
    missing = [name for name in before if name not in identity]
    if missing:
        raise ValueError(
            f"before={before!r}: the log does not have the old {', '.join(missing)}, only {', '.join(identity)}. "
            "Leave it out, or: ALTER TABLE … REPLICA IDENTITY FULL"
        )


def _title(change: Change) -> str:
    return f"{change.event.value} on {change.schema}.{change.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What one change fired: a call of a task, or an error for which the change would be parked."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    table: str  # with its schema
    event: EventType
    error: Exception | None = None
    is_batched: bool = False  # whether the task gets a list of `args` or `kwargs`
    key: str | None = None  # of its message group, with the group's name: "orders:42"; None: it has none
    on_failure: OnFailure = "continue"

    @classmethod
    def of(cls, fired: Any) -> Fired:
        """Convert what a router's `tasks_for` yielded."""
        route, change = fired.route, fired.change
        is_call = hasattr(fired, "arguments")
        return cls(
            task=route.task,
            args=json.loads(b"[%b]" % fired.arguments) if is_call else [],
            kwargs=json.loads(b"{%b}" % fired.kwargs) if is_call else {},
            table=f"{change.schema}.{change.table}",
            event=change.event,
            error=None if is_call else fired.error,
            is_batched=route.batch is not None,
            key=fired.key,
            on_failure=route.on_failure,
        )

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.task}: parked, because of {self.error!r}"
        ordered = "" if self.key is None else f", key {self.key}, on_failure {self.on_failure}"
        return f"{self.task}{_shown(self.args, self.kwargs)}{ordered}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedOrder:
    """The order by key that a test expects; None: any."""

    key: Any = None
    group: str | None = None
    on_failure: OnFailure | None = None

    def is_that_of(self, fired: Fired) -> bool:
        """Return whether a call has this order."""
        if fired.key is None:
            return self == WantedOrder()
        group = fired.key.partition(":")[0]
        return (
            self.group in {None, group}
            and self.on_failure in {None, fired.on_failure}
            and (self.key is None or fired.key in self._keys(group, fired.table))
        )

    def _keys(self, group: str, table: str) -> set[str]:
        """Return the possible keys of the value: a route for many tables puts the table's name before it."""
        text = text_of_values(tuple(self.key) if isinstance(self.key, list | tuple) else (self.key,))
        return {bounded_key(group, text), bounded_key(group, f"{table} {text}")}

    def __str__(self) -> str:
        named = {"key": self.key, "group": self.group, "on_failure": self.on_failure}
        return "".join(f", {name}={value!r}" for name, value in named.items() if value is not None)


def name_of(task: Any) -> str:
    """Return the name of a task that is given by name or as an object."""
    return task if isinstance(task, str) else str(task.name)


def check_fired(
    fired: Sequence[Fired],
    task: Any,
    *,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    order: WantedOrder,
    times: int,
    title: str,
    routes: Sequence[Any],
    app: Any,
) -> None:
    """Raise AssertionError unless `fired` has the task exactly `times` times; see `assert_fires`."""
    name = name_of(task)
    calls = [each for each in fired if each.task == name and each.error is None]
    _check_task(task, name, calls, app)
    if args is not None:
        calls = [each for each in calls if each.args == list(args)]
    if kwargs is not None:
        calls = [each for each in calls if each.kwargs == dict(kwargs)]
    calls = [each for each in calls if order.is_that_of(each)]
    if len(calls) != times:
        called = "" if args is None and kwargs is None else _shown(args or (), kwargs or {})
        wanted = f"{name}{called}{order}"
        raise AssertionError(
            f"{title} fires {wanted} {counted(len(calls), 'time')}, not {times}. "
            f"{_described(fired)}{_hint(name, routes)}"
        )
    parked = [each for each in fired if each.task == name and each.error is not None]
    if parked and times:
        raise AssertionError(f"{title} fires {name}, and parks a change:\n  {parked[0]}")


def _check_task(task: Any, name: str, calls: Sequence[Fired], app: Any) -> None:
    """Raise AssertionError if the app has no such task, or if the task does not take a call's arguments."""
    if app is not None and name not in app.tasks:
        raise AssertionError(f"The app {app.main} has no task {name}.{_close(name, app.tasks)}")
    known = app.tasks[name] if app is not None else task
    run = getattr(known, "run", None)
    if run is None or not getattr(known, "typing", True):
        return
    for each in calls:
        positional, named = ([each.args], {}) if each.is_batched else (each.args, each.kwargs)
        try:
            signature(run).bind(*positional, **named)
        except TypeError as error:
            raise AssertionError(f"{name}{signature(run)} does not take {each}: {error}.") from None


def _hint(name: str, routes: Sequence[Any]) -> str:
    names = {route.task for route in routes}
    return "" if name in names or not names else f"\nNo route fires {name}.{_close(name, names)}"


def _close(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _described(fired: Sequence[Fired]) -> str:
    if not fired:
        return "Nothing fired: no route matches, its `when` returned false, or nothing was committed."
    return "What fired:\n" + "\n".join(f"  {each}" for each in fired)


def _shown(args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    return f"({', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in kwargs.items())])})"
