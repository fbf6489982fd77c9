"""The apps that `cdc_tasks.install` has changed, and the parts of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

from cdc_tasks.environment import TWINS, is_set

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "NO_PARTS",
    "Parts",
    "asked_parts",
    "bound_before",
    "current_app",
    "current_parts",
    "has_redis",
    "is_foreign",
    "note_bound",
    "note_parts",
    "parts_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of an app; `cdc_tasks.install` describes them."""

    transport: bool = True
    late_acks: bool = True
    retries: bool = True
    dead_letters: bool = True
    health: bool = True
    metrics: bool = True
    order_by_key: bool = True
    context: bool = False

    @property
    def has_partitions(self) -> bool:
        """Return whether the app has everything that order by key on RabbitMQ needs."""
        return self.order_by_key and self.transport and self.late_acks and self.dead_letters


NO_PARTS: Final = Parts(
    transport=False,
    late_acks=False,
    retries=False,
    dead_letters=False,
    health=False,
    metrics=False,
    order_by_key=False,
)
_parts: WeakKeyDictionary[Celery, Parts] = WeakKeyDictionary()
_asked: WeakKeyDictionary[Celery, Parts] = WeakKeyDictionary()
_own: WeakSet[Celery] = WeakSet()
_bound_before: WeakKeyDictionary[Celery, tuple[str, ...]] = WeakKeyDictionary()


def note_parts(app: Celery, parts: Parts, *, is_own: bool = False) -> None:
    """Record the parts of an app; `is_own`: it is cdc-tasks' own app, with all settings from the environment."""
    _parts[app] = parts
    _asked.setdefault(app, parts)
    if is_own:
        _own.add(app)


def note_bound(app: Celery) -> None:
    """Record the tasks that the app has created already: they have read their options from the earlier settings."""
    made: Any = vars(app)["_tasks"]  # `tasks` would create all tasks
    _bound_before[app] = tuple(sorted(name for name in dict.keys(made) if not name.startswith("celery.")))


def bound_before(app: Celery) -> tuple[str, ...]:
    """Return the names of the tasks that the app had created before `cdc_tasks.install`."""
    return _bound_before.get(app, ())


def is_foreign(app: Celery) -> bool:
    """Return whether this is an application's own app with our parts."""
    return app in _parts and app not in _own


def parts_of(app: Celery) -> Parts | None:
    """Return the parts of an app; None if nothing is installed in it."""
    return _parts.get(app)


def asked_parts(app: Celery) -> Parts:
    """Return the requested parts, including those that this worker had to leave out."""
    return _asked.get(app, NO_PARTS)


def has_redis(app: Celery) -> bool:
    """Return whether there is a Redis for this app's data: CDC_CACHE_URL, or its broker."""
    if not is_foreign(app) or is_set(TWINS["CACHE_URL"]):
        return True
    with app.connection_for_write() as connection:
        return bool(connection.transport.driver_type == "redis")


def current_app() -> Celery:
    """Return Celery's current app; in a worker, the worker's app.

    A thread of a web server may have none: then it is the app with our parts, if there is exactly one.
    """
    from celery.app import app_or_default

    found = app_or_default()
    return next(iter(_parts)) if found not in _parts and len(_parts) == 1 else found


def current_parts() -> Parts | None:
    """Return the parts of the current app; None if nothing is installed in it."""
    return parts_of(current_app()) if _parts else None
