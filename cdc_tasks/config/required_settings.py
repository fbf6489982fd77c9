"""The Celery settings that the guarantees of docs/guarantees.md require, with the reason for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["UnfitPoolError", "check_pool", "weakened"]

_OWN_TRANSPORTS: Final = ("cdc_tasks.broker.redis.transport", "cdc_tasks.broker.rabbitmq.transport")

# setting: (the required value, what happens otherwise)
_REQUIRED: Final[dict[str, tuple[Any, str]]] = {
    "task_acks_late": (True, "a task is lost when its worker dies"),
    "task_reject_on_worker_lost": (True, "a task is lost when its worker process dies"),
    "worker_consumer": (
        "cdc_tasks.worker.consumer:Consumer",
        "messages of unknown tasks are dropped, and their rows are logged",
    ),
    "accept_content": (["json"], "anyone who can write to the broker can run code in the workers"),
}


# The module of a Celery pool: the reason why a task could run twice at the same time or be lost.
_NO_LOOP: Final = "it has no event loop that renews the leases of the worker's tasks"
_UNFIT_POOLS: Final = {
    "celery.concurrency.thread": "a thread cannot be stopped: after the connection to the broker has broken, its "
    "task goes on while it runs a second time",
    "celery.concurrency.gevent": _NO_LOOP,
    "celery.concurrency.eventlet": _NO_LOOP,
}


class UnfitPoolError(CDCError):
    """The guarantees do not hold in this pool."""


def check_pool(pool: type) -> None:
    """Raise UnfitPoolError if the guarantees do not hold in this pool of Celery."""
    if why := _UNFIT_POOLS.get(pool.__module__):
        raise UnfitPoolError(
            f"The pool {pool.__module__.rpartition('.')[2]} is refused: {why}.",
            hint="Omit --pool, or use: --pool=prefork",
        )


def weakened(app: Celery) -> list[str]:
    """Return the ways in which the app's settings weaken the guarantees, one sentence each."""
    return list(_weakened(app))


def _weakened(app: Celery) -> Iterator[str]:
    if weakness := _foreign_transport(app):
        yield weakness
    for name, (required, otherwise) in _REQUIRED.items():
        value = app.conf.get(name)
        if (sorted(value) if isinstance(required, list) else value) != required:
            yield f"{name} is {value!r} instead of {required!r}: {otherwise}"


def _foreign_transport(app: Celery) -> str | None:
    with app.connection_for_read() as connection:
        kind = connection.transport.driver_type
        module = type(connection.transport).__module__
    if kind not in {"redis", "amqp"} or module in _OWN_TRANSPORTS:
        return None
    return f"the transport is {module}: a message is lost when a worker dies while it receives it"
