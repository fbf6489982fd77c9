"""The Celery settings that the guarantees of docs/guarantees.md require, with the reason for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.installed import Parts, has_redis, is_foreign, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["UnfitPoolError", "check_pool", "weakened"]

_OWN_TRANSPORTS: Final = ("cdc_tasks.broker.redis.transport", "cdc_tasks.broker.rabbitmq.transport")

# setting: (the part that needs it, the required value, what happens otherwise)
_REQUIRED: Final[dict[str, tuple[str, Any, str]]] = {
    "task_acks_late": ("late_acks", True, "a task is lost when its worker dies"),
    "task_reject_on_worker_lost": ("late_acks", True, "a task is lost when its worker process dies"),
    "worker_consumer": (
        "dead_letters",
        "cdc_tasks.worker.consumer:Consumer",
        "messages of unknown tasks are dropped, and their rows are logged",
    ),
}
_CODE_IN_MESSAGES: Final = frozenset({"pickle", "application/x-python-serialize"})
_LONGEST_LEASE: Final = (
    600  # seconds; with a longer lease, there is a warning: a dead worker's tasks wait that long
)


# The module of a Celery pool: the reason why a task could run twice at the same time or be lost.
_NO_LOOP: Final = "it has no event loop that renews the leases of the worker's tasks"
_UNFIT_POOLS: Final = {
    "celery.concurrency.thread": "a thread cannot be stopped: after the connection to the broker has broken, its "
    "task continues while it runs a second time",
    "celery.concurrency.gevent": _NO_LOOP,
    "celery.concurrency.eventlet": _NO_LOOP,
}
_UNFIT_FOR_LONG_TASKS: Final = {"celery.concurrency.solo": "while a task runs, nothing renews its lease"}


class UnfitPoolError(CDCError):
    """The guarantees do not hold with this pool."""


def check_pool(pool: type, *, is_foreign: bool = False) -> None:
    """Raise UnfitPoolError if the guarantees do not hold with this Celery pool.

    `is_foreign`: an application's own app, whose tasks may run longer than a lease; those of our app may not.
    """
    unfit = _UNFIT_POOLS | (_UNFIT_FOR_LONG_TASKS if is_foreign else {})
    if why := unfit.get(pool.__module__):
        raise UnfitPoolError(
            f"The pool {pool.__module__.rpartition('.')[2]} is refused: {why}.",
            hint="Omit --pool, or use: --pool=prefork",
        )


def weakened(app: Celery) -> list[str]:
    """Return the ways in which the app's settings weaken the guarantees of its parts, one sentence each."""
    return list(_weakened(app, parts_of(app) or Parts()))


def _weakened(app: Celery, parts: Parts) -> Iterator[str]:
    if parts.transport and (weakness := _foreign_transport(app)):
        yield weakness
    for name, (part, required, otherwise) in _REQUIRED.items():
        if getattr(parts, part) and (value := app.conf.get(name)) != required:
            yield f"{name} is {value!r} instead of {required!r}: {otherwise}"
    accepted = sorted(app.conf.accept_content or ())
    if accepted != ["json"] if not is_foreign(app) else _CODE_IN_MESSAGES.intersection(accepted):
        otherwise = "anyone who can write to the broker can run code in the workers"
        yield f"accept_content is {accepted!r} instead of ['json']: {otherwise}"
    if is_foreign(app):
        yield from _weakened_by_others(app, parts)


def _weakened_by_others(app: Celery, parts: Parts) -> Iterator[str]:
    """Yield the sentences that only apply to an application's own app."""
    if not (parts.dead_letters and parts.health):
        yield from _without_redis(app, parts)
    if parts.late_acks:
        early = sorted(name for name, task in app.tasks.items() if _is_early(name, task))
        if early and app.conf.task_acks_late:
            yield f"{', '.join(early)}: acks_late is False: such a task is lost when its worker dies"
    lease = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    if parts.transport and lease is not None and lease > _LONGEST_LEASE and _kind(app) == "redis":
        yield (
            f"visibility_timeout is {lease}: a dead worker's tasks are delivered again only after as many seconds; "
            "a living worker renews its leases, however long its tasks run, so the default of 60 is enough"
        )


def _is_early(name: str, task: Any) -> bool:
    return not name.startswith("celery.") and not task.acks_late


def _without_redis(app: Celery, parts: Parts) -> Iterator[str]:
    if not parts.dead_letters and not has_redis(app):
        yield (
            "CDC_CACHE_URL is not set, and the broker is not Redis: failed tasks and messages of unknown tasks are "
            "dropped, workers do not answer `health`, and this worker takes no tasks with a key"
        )


def _kind(app: Celery) -> str:
    with app.connection_for_read() as connection:
        return str(connection.transport.driver_type)


def _foreign_transport(app: Celery) -> str | None:
    with app.connection_for_read() as connection:
        kind = connection.transport.driver_type
        module = type(connection.transport).__module__
    if kind not in {"redis", "amqp"} or module in _OWN_TRANSPORTS:
        return None
    return f"the transport is {module}: a message is lost when a worker dies while it receives it"
