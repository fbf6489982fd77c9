"""What the apps' `cdc.py` register: kept until a router is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from celery import Task
    from django.db.models import Model

    from cdc_tasks.changes import EventType

__all__ = ["Registered", "register", "registered"]


@dataclass(frozen=True, slots=True)
class Registered:
    """The arguments of one `register(…)`."""

    table: type[Model] | str
    events: Iterable[EventType | str] | EventType | str
    task: Task[Any, Any] | str
    options: dict[str, Any]


registered: Final[list[Registered]] = []


def register(
    table: type[Model] | str,
    events: Iterable[EventType | str] | EventType | str,
    task: Task[Any, Any] | str,
    **options: Any,
) -> None:
    """Fire `task` on `events` of a model's table: for an app's `cdc.py`, as `admin.site.register` is for `admin.py`.

    `table` is a model, or a table's name or glob, with a schema before a dot if it is not the models' own. `task` is
    a task, or the name of one that need not be in this project. `options` are those of `BinlogRouter.register`, which
    checks them when the routes are loaded: `manage.py check` and `manage.py cdc` show a mistake with its hint.
    """
    registered.append(Registered(table, events, task, options))
