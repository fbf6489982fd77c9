"""Tasks that a route names as objects: what can be read from them without importing Celery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature, isfunction, signature
from typing import Any

from cdc_tasks.routing.arguments import Args, ColumnArgs, ColumnKwargs, Kwargs
from cdc_tasks.routing.tables import RouteError

__all__ = ["Task", "check_arguments", "check_call", "check_is_task", "task_of"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a route knows it."""

    name: str
    parameters: Signature | None = None  # None: unknown, so no call is checked
    options: dict[str, Any] = field(default_factory=dict)  # its own: queue, priority, expires


def task_of(task: Any) -> Task:
    """Return the task that is given by name or as an object. Raises RouteError."""
    if isinstance(task, str):
        return Task(task)
    check_is_task(task)
    return Task(task.name, _parameters(task), _own_options(task))


def check_is_task(task: Any) -> None:
    """Raise RouteError if this is not a Celery task. A lazy one (`@shared_task`) is not evaluated."""
    if type(task).__module__ == "celery.local":
        return
    if isinstance(task, type):
        raise RouteError(
            f"{task.__qualname__} is a class, not a task.",
            hint="Register it with Celery: task = app.register_task(…())",
        )
    if isfunction(task) or not callable(getattr(task, "apply_async", None)):
        shown = getattr(task, "__qualname__", repr(task))
        raise RouteError(
            f"{shown} is not a Celery task.",
            hint="Write on_change above the decorator that makes the task:\n"
            '  @on_change("orders_order")\n'
            "  @shared_task\n"
            f"  def {getattr(task, '__name__', 'task')}(…):",
        )


def _own_options(task: Any) -> dict[str, Any]:
    """Return the task's own options, as in `@shared_task(queue="mail")`, that a route can have too."""
    queue, priority, expires = (getattr(task, name, None) for name in ("queue", "priority", "expires"))
    named = {
        "queue": getattr(queue, "name", queue),
        "priority": priority,
        "expires": expires if isinstance(expires, int | float) else None,  # a route cannot have a date
    }
    return {name: value for name, value in named.items() if value is not None}


def _parameters(task: Any) -> Signature | None:
    """Return the parameters that a caller gives; None if Celery does not check them, or if they are unknown."""
    if not getattr(task, "typing", True):
        return None
    try:
        return signature(task.run)
    except (AttributeError, TypeError, ValueError):
        return None


def check_call(task: Task, *, args: Args | None, kwargs: Kwargs | None, batch: int | None) -> bool:
    """Raise RouteError if the task does not take the arguments that the route passes.

    Return whether this can be checked only when the route fires, because a function makes the arguments.
    """
    if task.parameters is None:
        return False
    if args is None or batch is not None:
        _bind(
            task,
            task.parameters,
            1,
            (),
            "the list of a batch" if batch is not None else "the change as the only argument",
        )
        return False
    if isinstance(args, ColumnArgs) and (kwargs is None or isinstance(kwargs, ColumnKwargs)):
        names = () if kwargs is None else kwargs.names
        given = [*args.columns, *(f"{name}=" for name in names)]
        _bind(task, task.parameters, len(args.columns), names, f"({', '.join(given)})")
        return False
    if kwargs is not None and isinstance(kwargs, ColumnKwargs):
        _check_names(task, kwargs.names)
    return True


def _bind(task: Task, parameters: Signature, count: int, names: tuple[str, ...], shown: str) -> None:
    try:
        parameters.bind(*(None,) * count, **dict.fromkeys(names))
    except TypeError as error:
        raise RouteError(
            f"{task.name}{parameters} does not take what the route passes, {shown}: {error}.",
            hint="Correct args= and kwargs= of the route, or the parameters of the task.",
            code="task_arguments",
        ) from None


def check_arguments(task: str, parameters: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError, without a value, if a task does not take what its route's functions returned."""
    try:
        parameters.bind(*args, **kwargs)
    except TypeError as error:
        shown = [f"{len(args)} positional", *(f"{name}=" for name in kwargs)]
        raise TypeError(f"{task}{parameters} does not take ({', '.join(shown)}): {error}") from None


def _check_names(task: Task, names: tuple[str, ...]) -> None:
    """Raise RouteError if a name is not a parameter of the task; `args=` is a function, so the rest is unknown."""
    known = (task.parameters or Signature()).parameters.values()
    if any(each.kind is Parameter.VAR_KEYWORD for each in known):
        return
    unknown = [name for name in names if name not in {each.name for each in known}]
    if unknown:
        raise RouteError(
            f"{task.name}{task.parameters} has no parameter {', '.join(unknown)}.",
            hint="Correct kwargs= of the route.",
            code="task_arguments",
        )
