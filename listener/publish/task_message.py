"""Celery's own message for a task, with places to fill in; its content is Celery's, for any broker."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

import orjson
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Queue
from kombu.common import Broadcast

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from cdc_tasks.versions import celery_is

__all__ = [
    "ID",
    "KIND",
    "POSITION",
    "EnvelopeError",
    "Kind",
    "argsrepr",
    "durable_queues",
    "make_message",
    "shown_kind",
    "split_body",
]

Kind = tuple[str, str, str]  # of change: schema, table, event

ID: Final = "cdc-0id"
KIND: Final = "cdc-0kind"
POSITION: Final = "cdc-0position"
_ARGUMENT: Final = "cdc-0argument"

# Celery's `send_task` passes these itself: in task_routes they are an error, here as in Celery.
_NOT_BY_ROUTE: Final = {
    **dict.fromkeys(("countdown", "eta", "expires", "shadow", "soft_time_limit", "time_limit")),
    "ignore_result": None if celery_is(5, 7) else False,  # Celery's default
}


class EnvelopeError(CDCError):
    """Celery's settings ask for a kind of message that the listener cannot make."""


def make_message(app: Celery, route: Route) -> tuple[Any, dict[str, Any]]:
    """Return what Celery's `send_task` would pass to `send_task_message`: the message, and where it goes.

    Raises EnvelopeError.
    """
    options: dict[str, Any] = {"queue": route.queue} if route.queue else {}
    try:
        options = app.amqp.router.route(options, route.task, (_ARGUMENT,), {})
        message = app.amqp.create_task_message(
            ID, route.task, [_ARGUMENT], {}, reply_to=app.thread_oid, **_NOT_BY_ROUTE, **options
        )
    except QueueNotFound as error:
        raise EnvelopeError(
            f"The task {route.task} would go to a queue that does not exist: {error.args[0]}",
            hint="Add it to task_queues in celeryconfig.py, or correct queue= of the route.",
            code="no_queue",
        ) from error
    except TypeError as error:
        raise EnvelopeError(
            f"Celery cannot send {route.task} by name with its settings: {error}.",
            hint="Leave that option out of task_routes in celeryconfig.py.",
            code="task_options",
        ) from error
    message.headers.update(argsrepr=f"<{KIND} {POSITION}>", kwargsrepr="{}")
    return message, options


def split_body(body: bytes, content_type: str) -> tuple[bytes, bytes]:
    """Return what is before and after the arguments in the body that Celery made; raises EnvelopeError."""
    if content_type != "application/json":
        raise EnvelopeError(
            f"Tasks would be sent as {content_type}.",
            hint='Set task_serializer = "json" in celeryconfig.py.',
            code="message_format",
        )
    if ID.encode() in body:
        raise EnvelopeError(
            "Tasks would be sent in Celery's old protocol.",
            hint="Leave task_protocol out of celeryconfig.py.",
            code="message_format",
        )
    head, _, tail = body.partition(json.dumps(_ARGUMENT).encode())
    return head, tail


def durable_queues(app: Celery) -> list[Queue]:
    """Return the queues that a worker declares when it starts, and that outlive it."""
    return [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]


def argsrepr(kind: Kind, position: str) -> str:
    """Return what Flower shows as a task's arguments: which change it is, and nothing of the row."""
    return f"<{shown_kind(kind)} {position}>"


@lru_cache(maxsize=10_000)
def shown_kind(kind: Kind) -> str:
    """Return what Flower shows of a kind of change: the value of KIND in a message."""
    schema, table, event = kind
    name = orjson.dumps(f"{schema}.{table}").decode()[1:-1]
    return f"{name} {event}"
