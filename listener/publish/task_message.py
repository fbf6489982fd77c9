"""Celery's own message for a task, with places to fill in; its content is Celery's, for any broker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from celery import Celery
from celery.exceptions import QueueNotFound
from celery.utils.time import maybe_make_aware
from kombu import Queue
from kombu.common import Broadcast
from kombu.exceptions import SerializerNotInstalled
from kombu.serialization import dumps

from cdc_tasks.broker.delivery_marks import REPLAY_HEADER
from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from cdc_tasks.versions import celery_is

__all__ = [
    "CONTEXT",
    "ETA",
    "EXPIRES",
    "ID",
    "KIND",
    "POSITION",
    "TRACE",
    "EnvelopeError",
    "Kind",
    "Made",
    "Timing",
    "argsrepr",
    "check_plain",
    "durable_queues",
    "make_message",
    "send_options",
    "shown_kind",
    "split_body",
]

Kind = tuple[str, str, str]  # of change: schema, table, event

CONTEXT: Final = "cdc-0context"
ID: Final = "cdc-0id"
KIND: Final = "cdc-0kind"
TRACE: Final = "cdc-0trace"  # a place for headers that name a trace
POSITION: Final = "cdc-0position"
ETA: Final = "cdc-0eta"
EXPIRES: Final = "cdc-0expires"
_ENQUEUED: Final = EventType.ENQUEUED.value
_ARGUMENT: Final = "cdc-0argument"
_JSON: Final = "application/json"
_KEYWORD: Final = {"cdc-0keyword": None}

# Celery's `send_task` passes these itself: in task_routes they are an error, here as in Celery.
_NOT_BY_ROUTE: Final = {
    **dict.fromkeys(("countdown", "eta", "expires", "shadow", "soft_time_limit", "time_limit")),
    "ignore_result": None if celery_is(5, 7) else False,  # Celery's default
}
# Message options that a task may set, as in `@app.task(queue="mail")`; Celery's `apply_async` reads the same.
_OWN_OPTIONS: Final = (
    "queue", "exchange", "routing_key", "priority", "serializer", "delivery_mode", "compression", "immediate",
    "mandatory", "expires", "ignore_result", "soft_time_limit", "time_limit",
)  # fmt: skip


class EnvelopeError(CDCError):
    """Celery's settings need a kind of message that the listener cannot create."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a task is due, and when it expires: in seconds after it is sent."""

    app: Celery
    countdown: float | None
    expires: float | None

    def from_now(self) -> tuple[str, str]:
        """Return both times in Celery's format, ISO 8601; empty if there is none."""
        now = self.app.now()
        return self._after(now, self.countdown), self._after(now, self.expires)

    def headers(self) -> dict[str, str]:
        """Return the headers of a message that is sent now."""
        eta, expires = self.from_now()
        return {name: time for name, time in (("eta", eta), ("expires", expires)) if time}

    def _after(self, now: datetime, seconds: float | None) -> str:
        if seconds is None:
            return ""
        due: datetime = maybe_make_aware(now + timedelta(seconds=seconds), tz=self.app.timezone)
        return due.isoformat()


class Made(NamedTuple):
    """The arguments that Celery's `send_task` would pass to `send_task_message`."""

    message: Any
    options: dict[str, Any]  # where it goes, and its properties
    timing: Timing | None  # its times are ETA and EXPIRES in the message; None: it has none


def send_options(route: Route) -> dict[str, Any]:
    """Return the route's message options, as options of Celery's `send_task`."""
    named = {
        "queue": route.queue,
        "priority": route.priority,
        "countdown": route.countdown,
        "expires": route.expires,
    }
    return {**{name: value for name, value in named.items() if value is not None}, **route.options}


def make_message(app: Celery, route: Route, *, queue: Queue | None = None) -> Made:
    """Return the message of a route's tasks, with places to fill in, and its destination. Raise EnvelopeError.

    If `queue` is given, it overrides the queue of route and app.
    """
    options = {**_own_options(app, route.task), **send_options(route)}
    task: Any = app.tasks.get(route.task)
    fixed = _NOT_BY_ROUTE | {name: options.pop(name) for name in _NOT_BY_ROUTE if name in options}
    timing = _timing(app, fixed)
    try:
        options = app.amqp.router.route(options, route.task, (_ARGUMENT,), {}, task)
        if queue is not None:
            options |= {"queue": queue, "exchange": queue.exchange.name, "routing_key": queue.routing_key}
        message = app.amqp.create_task_message(
            ID, route.task, [_ARGUMENT], dict(_KEYWORD), reply_to=app.thread_oid, **fixed, **options
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
    if timing and timing.expires is not None:
        options["expiration"] = timing.expires
    _check_format(app, route.task, message, options)
    message.headers.update(argsrepr=f"<{KIND} {POSITION}>", kwargsrepr="{}")
    if route.replay is not None:
        message.headers[REPLAY_HEADER] = route.replay
    return Made(message, options, timing)


def _own_options(app: Celery, task: str) -> dict[str, Any]:
    """Return the task's message options, if the app has the task."""
    found = app.tasks.get(task)
    # Including None, as in Celery: a priority of None makes a different message than no priority.
    return {} if found is None else {name: getattr(found, name, None) for name in _OWN_OPTIONS}


def _timing(app: Celery, fixed: dict[str, Any]) -> Timing | None:
    """Return the times of the message, and put the places for them into `fixed`."""
    countdown, expires = fixed["countdown"], fixed["expires"]
    seconds = expires if isinstance(expires, int | float) else None  # a task of the app may set a date
    if not countdown and seconds is None:
        return None
    fixed |= {"countdown": None, "eta": ETA if countdown else None}
    fixed["expires"] = expires if seconds is None else EXPIRES
    return Timing(app, countdown or None, seconds)


def _check_format(app: Celery, task: str, message: Any, options: dict[str, Any]) -> None:
    """Raise EnvelopeError unless the body is JSON in Celery's protocol 2: arguments are inserted into that."""
    if app.conf.task_protocol == 1:
        raise EnvelopeError(
            f"The task {task} would be sent in Celery's old protocol: task_protocol is 1.",
            hint="Leave task_protocol out of celeryconfig.py.",
            code="message_format",
        )
    serializer = options.get("serializer") or app.conf.task_serializer
    try:
        content_type = dumps(message.body, serializer)[0]
    except SerializerNotInstalled:
        content_type = None
    if content_type != _JSON:
        raise EnvelopeError(
            f"The task {task} would be sent as {content_type or 'nothing that kombu knows'}: "
            f"serializer is {serializer!r}.",
            hint=_cure(app, task, "serializer", serializer, '"json"'),
            code="message_format",
        )


def check_plain(app: Celery, task: str, options: dict[str, Any]) -> None:
    """Raise EnvelopeError if the body in Redis would not be base64 of JSON."""
    if compression := options.get("compression") or app.conf.task_compression:
        raise EnvelopeError(
            f"The task {task} would be compressed: compression is {compression!r}.",
            hint=_cure(app, task, "compression", compression, "None"),
            code="message_format",
        )
    encoding = (app.conf.broker_transport_options or {}).get("body_encoding", "base64")
    if encoding != "base64":
        raise EnvelopeError(
            f"The task {task} would not be encoded as base64: body_encoding is {encoding!r}.",
            hint="Leave body_encoding out of broker_transport_options in celeryconfig.py.",
            code="message_format",
        )


def _cure(app: Celery, task: str, option: str, value: Any, ours: str) -> str:
    """Return how to correct an option at its source: Celery's setting, the task itself, or task_routes."""
    if value == app.conf.get(f"task_{option}"):
        return f"Set task_{option} = {ours} in celeryconfig.py, or {option}={ours} at the task."
    if value == _own_options(app, task).get(option):
        return f"Leave {option}= out of the task, or write {option}={ours}."
    return f"Leave {option} out of task_routes in celeryconfig.py."


def split_body(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the parts before, between and after the two kinds of arguments in Celery's body."""
    head, _, rest = body.partition(json.dumps(_ARGUMENT).encode())
    middle, _, end = rest.partition(json.dumps(_KEYWORD).encode()[1:-1])
    return head, middle, end


def durable_queues(app: Celery) -> list[Queue]:
    """Return the queues that a worker declares at start-up and that outlive it."""
    return [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]


def argsrepr(kind: Kind, position: str) -> str:
    """Return what Flower shows as a task's arguments: which change it is, without row data."""
    return f"<{shown_kind(kind)} {position}>"


@lru_cache(maxsize=10_000)
def shown_kind(kind: Kind) -> str:
    """Return what Flower shows of a kind of change: the value of KIND in a message."""
    schema, table, event = kind
    if event == _ENQUEUED:  # the schema is its options
        return orjson.dumps(f"{table} {event}").decode()[1:-1]
    name = orjson.dumps(f"{schema}.{table}").decode()[1:-1]
    return f"{name} {event}"
