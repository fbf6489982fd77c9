"""`@on_change` on a task: the route is written next to the task.

The decorator only records its arguments, per process and not per app: tasks of `@shared_task` belong to every app,
and no app is ready while modules are being imported. `router_of` makes the routes, in an order that does not depend
on the order of the imports. So a route has the same id in every process, and its tasks have the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import currentframe
from itertools import count
from typing import Any, Final, TypeVar, Unpack

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, RouteOptions
from cdc_tasks.routing.tables import RouteError, TableName, all_tables
from cdc_tasks.routing.tasks import check_is_task
from cdc_tasks.source_lines import standing_at

__all__ = ["DeclaredRoute", "declared_routes", "on_change", "router_of"]

TaskT = TypeVar("TaskT")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeclaredRoute:
    """One `@on_change`, for one of its tables."""

    task: Any  # Celery's task; with `@shared_task` it is a proxy, which needs an app
    table: TableName
    events: tuple[EventType | str, ...]
    options: RouteOptions
    module: str
    line: int
    file: str = field(repr=False)
    number: int = field(repr=False)  # of the declaration in this process: the order within one line

    @property
    def place(self) -> str:
        """Its file and line."""
        return f"{self.file}:{self.line}"

    @property
    def order(self) -> tuple[str, int, int]:
        return self.module, self.line, self.number


_declared: Final[list[DeclaredRoute]] = []
_numbers = count()


def on_change(
    table: Any, *events: EventType | str, **options: Unpack[RouteOptions]
) -> Callable[[TaskT], TaskT]:
    """Fire the decorated Celery task on changes of a table: `@on_change("orders_order", UPDATE, args=["id"])`.

    `table` is `"table"` of the home schema (`public` on PostgreSQL, the database of DATABASE_URL on MySQL),
    `"schema.table"`, a glob, a SQLAlchemy or Django model, or a list of these. Without `events` it fires on all
    of them. `options` are those of `BinlogRouter.register`.

    Write it above the decorator that makes the task. It returns the task unchanged, and one task may have several. The
    listener collects them from the app that `-A` names; see `router_of`.

    Raises RouteError, with file and line, for every mistake that shows without the task's signature. The signature is
    checked when the listener starts.
    """
    module, file, line = _caller()
    with _placed(f"{file}:{line}"):
        tables = all_tables(table)
        _check_options(options)
        for each in tables:
            _register(BinlogRouter(), each, events, "task", options, schema="public")

    def declare(task: TaskT) -> TaskT:
        with _placed(f"{file}:{line}"):
            check_is_task(task)
        for each in tables:
            declared = DeclaredRoute(
                task=task,
                table=each,
                events=tuple(events),
                options=options,
                module=module,
                line=line,
                file=file,
                number=next(_numbers),
            )
            _declared.append(declared)
        return task

    return declare


def _caller() -> tuple[str, str, int]:
    """Return module, file and line of the call of `on_change`."""
    frame = currentframe()
    for _ in range(2):
        frame = frame.f_back if frame else None
    if frame is None:  # a Python implementation without frames
        return "?", "?", 0
    return frame.f_globals.get("__name__", "?"), frame.f_code.co_filename, frame.f_lineno


def declared_routes() -> tuple[DeclaredRoute, ...]:
    """Return what `on_change` declared in this process, by module and line, whatever the order of the imports."""
    return tuple(sorted(_declared, key=lambda each: each.order))


def router_of(app: Any = None, router: BinlogRouter | None = None, *, schema: str = "public") -> BinlogRouter:
    """Return a router with the routes of `router`, followed by those that `on_change` declared.

    `app` is the Celery app whose tasks count: a task that only another app of this process has is left out. Import its
    modules first (`app.loader.import_default_modules()`), because a decorator that did not run declares nothing.
    Without `app` all declared routes count. `schema` is the schema of tables that are named without one.

    `router` itself is not changed, and its routes keep their ids. You may pass a result of this function again: no
    route is added twice.

    Raises RouteError, with file and line, if a task does not take the arguments that its route passes.
    """
    found = BinlogRouter() if router is None else router.copy()
    for key, (declared, task) in _last_of_each(app).items():
        if key not in found.declared:
            with _placed(declared.place):
                _register(found, declared.table, declared.events, task, declared.options, schema=schema)
            found.declared.add(key)
    return found


def _last_of_each(app: Any) -> dict[tuple[Any, ...], tuple[DeclaredRoute, Any]]:
    """Return the declared routes with their tasks, by the key that identifies each declaration.

    A module that is imported again (a reload, a test) declares its routes again: the last declaration counts.
    """
    found: dict[tuple[Any, ...], tuple[DeclaredRoute, Any]] = {}
    for each in declared_routes():
        task = _task_in(app, each.task)
        if task is not None:
            found[each.module, each.line, each.table, each.events, task.name] = each, task
    return found


def _register(
    router: BinlogRouter, table: TableName, events: Any, task: Any, options: RouteOptions, *, schema: str
) -> None:
    router.register(table.schema or schema, table.table, events or EventType.ALL, task, **options)


def _task_in(app: Any, task: Any) -> Any:
    """Return the app's own task of that name; None if the task belongs to another app."""
    if app is None:
        return task
    return app.tasks.get(task.name) or (task if task.app is app else None)


def _check_options(options: RouteOptions) -> None:
    known = list(RouteOptions.__annotations__)
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise RouteError(
                f"on_change has no option {name}." + (f" Did you mean {close[0]}?" if close else ""),
                hint=f"It has {', '.join(known)}.",
            )


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Record the place of the routes that the block registers, and add it to a RouteError."""
    try:
        with standing_at(place):
            yield
    except CDCError as error:
        message = f"{error.message.rstrip('.')} ({place})."
        raise RouteError(message, hint=error.hint, code=error.code) from None
    except TypeError as error:  # an option that is not a collection
        raise RouteError(f"{error} ({place}).") from error
