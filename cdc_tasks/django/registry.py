"""What the apps' `cdc.py` register: kept until a router is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from traceback import extract_stack
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Unpack

    from celery import Task
    from django.db.models import Model

    from cdc_tasks.changes import EventType
    from cdc_tasks.routing.router import RouteOptions

__all__ = ["Registered", "accept", "accepted", "register", "registered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """The arguments of one `register(…)`."""

    table: type[Model] | str
    events: Iterable[EventType | str] | EventType | str
    task: Task[Any, Any] | str
    options: RouteOptions
    place: str  # file and line


_registered: Final[dict[tuple[str, ...], Registered]] = {}
_accepted: Final[dict[Any, None]] = {}


def register(
    table: type[Model] | str,
    events: Iterable[EventType | str] | EventType | str,
    task: Task[Any, Any] | str,
    **options: Unpack[RouteOptions],
) -> None:
    """Fire `task` on `events` of a model's table: for an app's `cdc.py`, as `admin.site.register` is for `admin.py`.

    `table` is a model, or a table's name or glob, with a schema before a dot if it is not the models' own. `task` is
    one of the Celery app's, as an object or by its name. `options` are those of `BinlogRouter.register`, which
    checks them when the routes are loaded: `manage.py check` and `manage.py cdc` show a mistake with its place.
    """
    caller, _ = extract_stack(limit=2)
    place = f"{caller.filename}:{caller.lineno}"
    # A module that is imported again registers its routes again: the last one counts.
    key = place, repr(table), repr(events), str(getattr(task, "name", task))
    _registered[key] = Registered(table=table, events=events, task=task, options=options, place=place)


def accept(*tasks: Task[Any, Any] | str) -> None:
    """Send these tasks when a transaction enqueues them: for an app's `cdc.py`; see `BinlogRouter.accept`."""
    _accepted.update(dict.fromkeys(tasks))


def accepted() -> tuple[Any, ...]:
    """Return the tasks that a transaction may enqueue, in order."""
    return tuple(_accepted)


def registered() -> tuple[Registered, ...]:
    """Return what was registered in this process, in order."""
    return tuple(_registered.values())
