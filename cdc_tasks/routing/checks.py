"""Read the arguments of `BinlogRouter.register`, and refuse those that make no sense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeGuard

from cdc_tasks.changes import EventType
from cdc_tasks.routing.arguments import Args, ColumnArgs, ColumnKwargs, Kwargs, named_columns
from cdc_tasks.routing.keys import CalledKey, ColumnKey, Key
from cdc_tasks.routing.message_groups import check_group
from cdc_tasks.routing.route import GROW, PAUSE, SET_ASIDE
from cdc_tasks.routing.tables import RouteError

__all__ = [
    "check_callable",
    "check_grouping",
    "check_key",
    "check_key_grouping",
    "check_key_rows",
    "check_name",
    "check_on_full",
    "check_rows",
    "check_sending",
    "is_name",
    "read_args",
    "read_columns",
    "read_events",
    "read_key",
    "read_kwargs",
    "sent_columns",
]

_ON_FULL: Final = (PAUSE, GROW, SET_ASIDE)

_EVERY_CHANGE: Final = frozenset({EventType.INSERT, EventType.UPDATE, EventType.DELETE, EventType.TRUNCATE})
_NOT_FOR_ROUTES: Final = frozenset({EventType.ENQUEUED})
_HIGHEST_PRIORITY: Final = 255
_LONGEST: Final = 1e8  # seconds: three years


def check_name(**names: object) -> None:
    """Refuse names that are empty."""
    for what, name in names.items():
        if not is_name(name):
            raise RouteError(
                f"{what}={name!r} is not a name.", hint=f"Give the route a {what} that is not empty."
            )


def check_callable(**functions: object) -> None:
    """Refuse what is not a function."""
    for what, function in functions.items():
        if function is not None and not callable(function):
            raise RouteError(f"{what}={function!r} cannot be called.", hint=f"Write {what}=lambda change: …")


def check_sending(*, countdown: object, priority: object, expires: object) -> None:
    """Refuse times and priorities that Celery does not take."""
    for what, seconds in (("countdown", countdown), ("expires", expires)):
        if seconds is not None and not _is_duration(seconds):
            raise RouteError(f"{what}={seconds!r} is not a number of seconds.", hint=f"Write e.g. {what}=60.")
    if priority is not None and not (_is_integer(priority) and 0 <= priority <= _HIGHEST_PRIORITY):
        raise RouteError(
            f"priority={priority!r} is not a priority.",
            hint="Redis takes 0 to 9, and 0 goes first. RabbitMQ takes 0 up to x-max-priority of the queue, and 0"
            " goes last.",
        )


def check_rows(events: frozenset[EventType], task: str, args: Args | None, kwargs: Kwargs | None) -> None:
    """Refuse a route that passes columns of a row when a table is truncated: there is no row."""
    found = {"args": args, "kwargs": kwargs}
    for what, each in found.items():
        if EventType.TRUNCATE in events and isinstance(each, ColumnArgs | ColumnKwargs) and each.columns:
            raise RouteError(
                f"The route to {task} passes {what}={each!r}, but a TRUNCATE has no row.",
                hint="Name the events: [EventType.INSERT, EventType.UPDATE, EventType.DELETE].\n"
                f"Or give {what}= a function that handles a truncate: {what}=lambda change: …",
            )


def check_key(task: str, *, key: object, group: object, on_failure: object) -> None:
    """Refuse a key that makes no message group, and options of a key without one."""
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


def check_key_grouping(task: str, *, key: object, group: object, coalesce: bool, batch: int | None) -> None:
    """Refuse a key together with options that would break its order."""
    if key is not None and coalesce:
        raise RouteError(
            f"The route to {task} has both key and coalesce.",
            hint="Leave one out: a coalesced task stands for changes of many keys.",
        )
    if group is not None and batch is not None:
        raise RouteError(
            f"The route to {task} has both group and batch.",
            hint="Leave one out: while a batch fills, later tasks of the other routes would run first.",
        )


def check_key_rows(events: frozenset[EventType], task: str, key: object) -> None:
    """Refuse a key made of columns if the route takes TRUNCATE, which has no row."""
    if EventType.TRUNCATE in events and key is not None and not callable(key):
        raise RouteError(
            f"The route to {task} has key={key!r}, but a TRUNCATE has no row.",
            hint="Name the events: [EventType.INSERT, EventType.UPDATE, EventType.DELETE].\n"
            "Or give key= a function that returns None for a truncate: key=lambda change: …",
        )


def read_key(key: Any, group: str | None, route_id: str, *, is_glob: bool) -> Key | None:
    """Return the object that makes the key of a change."""
    if key is None:
        return None
    name, many = group or route_id, is_glob and group is None
    if callable(key):
        return CalledKey(name, key, many)
    return ColumnKey(name, (key,) if isinstance(key, str) else tuple(key), many)


def check_grouping(
    task: str, *, coalesce: bool, batch: int | None, args: Args | None, kwargs: Kwargs | None
) -> None:
    """Refuse coalesce and batch if they make no sense."""
    if batch is not None and not _is_count(batch):
        raise RouteError(
            f"batch={batch!r} of the route to {task} is not a number of changes.",
            hint="Write e.g. batch=500.",
        )
    if coalesce and batch is not None:
        raise RouteError(f"The route to {task} has both coalesce and batch.", hint="Leave one out.")
    if coalesce and args is None:
        raise RouteError(
            f"The route to {task} has coalesce=True but no args=, so its tasks would never be equal.",
            hint="Give it the arguments to coalesce on, e.g. args=lambda change: [change.table].",
        )
    if batch is not None and kwargs is not None and args != ColumnArgs(()):
        raise RouteError(
            f"The route to {task} has batch, args and kwargs, but its task gets one list.",
            hint="Leave out args= for a list of dicts, or kwargs= for a list of lists.",
        )


def read_args(args: object) -> Args | None:
    """Return `args` as a function of the change."""
    if args is None or callable(args):
        return args
    if isinstance(args, Mapping):
        raise RouteError(f"args={args!r} has names of parameters.", hint=f"Write kwargs={args!r}.")
    return ColumnArgs(_named("args", args))


def read_kwargs(kwargs: object) -> Kwargs | None:
    """Return `kwargs` as a function of the change."""
    if kwargs is None or callable(kwargs):
        return kwargs
    if isinstance(kwargs, Mapping):
        return ColumnKwargs(_named("kwargs", list(kwargs)), _named("kwargs", list(kwargs.values())))
    names = _named("kwargs", kwargs)
    if len(set(names)) < len(names):
        raise RouteError(f"kwargs={kwargs!r} has a name twice.", hint="Name each column once.")
    return ColumnKwargs(names, names)


def _named(what: str, names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(map(is_name, names)) or (what != "args" and not names):
        raise RouteError(
            f"{what}={names!r} are not names of columns.",
            hint=f'Write e.g. {what}=["id"], or {what}=lambda change: …',
        )
    return tuple(names)


def sent_columns(
    columns: tuple[str, ...] | None, args: Args | None, kwargs: Kwargs | None
) -> tuple[str, ...] | None:
    """Return the columns that the source must send; None: all."""
    named = () if args is None else named_columns(args, kwargs)
    if columns is None:
        return named or None
    return tuple(dict.fromkeys([*columns, *(named or ())]))


def check_on_full(task: str, on_full: str) -> None:
    """Refuse an unknown policy."""
    if on_full not in _ON_FULL:
        known = ", ".join(f'"{each}"' for each in _ON_FULL)
        raise RouteError(
            f"on_full={on_full!r} of the route to {task} is not a known policy.", hint=f"Use one of {known}."
        )


def read_events(events: Iterable[EventType | str] | EventType | str) -> frozenset[EventType]:
    """Return the events, without ALL."""
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


def read_columns(columns: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the columns, each once; None: all."""
    if columns is None:
        return None
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if not names or not all(map(is_name, names)):
        raise RouteError(
            f"columns={columns!r} are not names of columns.", hint='Write e.g. columns=["id", "status"].'
        )
    return tuple(dict.fromkeys(names))


def is_name(value: object) -> bool:
    """Return whether the value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 1


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST
