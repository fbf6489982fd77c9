"""Which of Celery's settings the guarantees of docs/guarantees.md need, and what goes without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["UnfitPoolError", "check_pool", "weakened"]

_OWN_TRANSPORTS: Final = ("cdc_tasks.broker.redis.transport", "cdc_tasks.broker.rabbitmq.transport")

# setting: (what the guarantees need, what happens otherwise)
_NEEDED: Final[dict[str, tuple[Any, str]]] = {
    "task_acks_late": (True, "a task is lost with a worker that dies"),
    "task_reject_on_worker_lost": (True, "a task is lost with a worker process that dies"),
    "worker_consumer": (
        "cdc_tasks.worker.consumer:Consumer",
        "messages of unknown tasks are dropped, with their rows in the log",
    ),
    "accept_content": (["json"], "whoever writes to the broker can run code in the workers"),
}


# By the module of Celery's pool: why a task could run twice at the same time, or be lost.
_NO_LOOP: Final = "it has no event loop that could tell the broker which tasks its worker still has"
_UNFIT_POOLS: Final = {
    "celery.concurrency.thread": "a thread can't be stopped: its task goes on after the connection to the broker "
    "broke, and runs a second time beside itself",
    "celery.concurrency.gevent": _NO_LOOP,
    "celery.concurrency.eventlet": _NO_LOOP,
}


class UnfitPoolError(CDCError):
    """The guarantees do not hold in this pool."""


def check_pool(pool: type) -> None:
    """Raise UnfitPoolError for a pool of Celery's in which the guarantees do not hold."""
    if why := _UNFIT_POOLS.get(pool.__module__):
        raise UnfitPoolError(
            f"The pool {pool.__module__.rpartition('.')[2]} is refused: {why}.",
            hint="Leave --pool out, or write: --pool=prefork",
        )


def weakened(app: Celery) -> list[str]:
    """Return what the app's settings take away from the guarantees, a sentence each."""
    return list(_weakened(app))


def _weakened(app: Celery) -> Iterator[str]:
    if without := _foreign_transport(app):
        yield without
    for name, (needed, otherwise) in _NEEDED.items():
        value = app.conf.get(name)
        if (sorted(value) if isinstance(needed, list) else value) != needed:
            yield f"{name} is {value!r} instead of {needed!r}: {otherwise}"


def _foreign_transport(app: Celery) -> str | None:
    with app.connection_for_read() as connection:
        kind = connection.transport.driver_type
        module = type(connection.transport).__module__
    if kind not in {"redis", "amqp"} or module in _OWN_TRANSPORTS:
        return None
    return f"the transport is {module}: a message is lost with a worker that dies while it takes it"
