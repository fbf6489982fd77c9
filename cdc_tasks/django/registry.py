"""The routes that the apps' `cdc.py` register, kept until a router is made from them."""

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
    """Fire `task` on `events` of a model's table. For an app's `cdc.py`, like `admin.site.register` for `admin.py`.

    `table` is a model, or a table's name or glob, with `schema.` before it if it is not in the models' schema. `task`
    is a task of the Celery app, as an object or by name. `options` are those of `BinlogRouter.register`, which checks
    them when the routes are loaded: `manage.py check` and `manage.py cdc` show a mistake with its file and line.
    """
    caller, _ = extract_stack(limit=2)
    place = f"{caller.filename}:{caller.lineno}"
    # A module that is imported again registers its routes again: the last registration counts.
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
