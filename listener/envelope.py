"""Celery's own message for a task, made once and cut into a template: what it says is Celery's, how fast it is ours."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import uuid4

import orjson
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Producer
from kombu.common import Broadcast
from kombu.utils.json import dumps

from cdc_tasks.errors import CDCError
from listener.redis_connection import Command, broker_channel, translated
from listener.router import Route

__all__ = ["Envelope", "EnvelopeError", "Envelopes", "argsrepr"]

_BODY, _ID, _POSITION, _TAG = _PLACES = ("cdc-0body", "cdc-0id", "cdc-0position", "cdc-0tag")
_ARGUMENT: Final = "cdc-0argument"
_AGAIN: Final = re.compile("|".join(_PLACES))


# What Celery's `send_task` passes by itself: in task_routes they are an error, here as there.
_NOT_BY_ROUTE: Final = dict.fromkeys(
    ("countdown", "eta", "expires", "ignore_result", "shadow", "soft_time_limit", "time_limit")
)


class EnvelopeError(CDCError):
    """Celery's settings ask for a kind of message that the listener does not make."""


class Envelope(NamedTuple):
    """The messages of one route and kind of change."""

    keys: tuple[str, ...]  # the Redis lists that such a message goes to
    expiries: tuple[Command, ...]  # what follows for a queue that goes away when it is not used
    seal: Callable[[bytes, bytes, bytes], bytes]  # (arguments, task id, position) -> message


class Envelopes:
    """Makes envelopes by letting Celery send a task and catching the message on its way to Redis."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def make(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        """Return the envelope of a route's tasks; talks to the broker, to declare the queue.

        Raises EnvelopeError, BrokerError, BrokerAway.
        """
        with translated("CELERY_BROKER_URL"), broker_channel(self._app) as channel:
            commands = _catch(self._app, channel, route, kind) or _catch(
                _with_all_queues(self._app, channel), channel, route, kind
            )
            pushes = {key: message for name, key, message in commands if name == "lpush"}
            _check(route.task, commands, pushes)
        expiries = tuple(("PEXPIRE", key, str(ms)) for name, key, ms in commands if name == "pexpire")
        return Envelope(tuple(pushes), expiries, _sealing(next(iter(pushes.values()))))


_Commands = list[tuple[str, str, Any]]  # name, key, value


class _Catcher:
    """Stands in for kombu's batch of Redis commands (`kombu.transport.redis.PublishBatch`): runs none of them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.commands: _Commands = []

    def add(self, name: str, key: str, value: Any) -> None:
        self.commands.append((name, f"{self._prefix}{key}", value))


def _catch(app: Celery, channel: Any, route: Route, kind: tuple[str, str, str]) -> _Commands:
    """Return the Redis commands that Celery's `send_task` ends in; its steps without its side effects."""
    catcher = _Catcher(channel.global_keyprefix)
    channel.basic_publish = partial(type(channel).basic_publish, channel, _publish_batch=catcher)
    options: dict[str, Any] = {"queue": route.queue} if route.queue else {}
    try:
        options = app.amqp.router.route(options, route.task, (_ARGUMENT,), {})
        message = app.amqp.create_task_message(
            _ID, route.task, [_ARGUMENT], {}, reply_to=app.thread_oid, **_NOT_BY_ROUTE, **options
        )
    except QueueNotFound as error:
        raise EnvelopeError(
            f"The task {route.task} would go to a queue that does not exist: {error.args[0]}",
            hint="Add it to task_queues in celeryconfig.py, or correct queue= of the route.",
        ) from error
    except TypeError as error:
        raise EnvelopeError(
            f"Celery cannot send {route.task} by name as its settings say: {error}.",
            hint="Leave that option out of task_routes in celeryconfig.py.",
        ) from error
    message.headers.update(argsrepr=argsrepr(kind, _POSITION), kwargsrepr="{}")
    app.amqp.send_task_message(Producer(channel), route.task, message, retry=False, **options)
    return catcher.commands


def _with_all_queues(app: Celery, channel: Any) -> Celery:
    """Bind all queues, as a worker does when it starts: one of them may be what the exchange lacks."""
    for queue in app.amqp.queues.values():
        if not isinstance(queue, Broadcast):
            queue(channel).declare()
    return app


def _check(task: str, commands: _Commands, pushes: dict[str, Any]) -> None:
    if any(name == "publish" for name, *_ in commands):
        raise EnvelopeError(
            f"The task {task} would be broadcast, which Redis does not keep for a worker that is away.",
            hint="Send it to a queue in task_routes of celeryconfig.py, and let that task do the rest.",
        )
    if not pushes:
        raise EnvelopeError(
            f"The task {task} would go to no queue: none is bound to its exchange.",
            hint="Correct task_routes or task_queues in celeryconfig.py.",
        )


def _sealing(text: str) -> Callable[[bytes, bytes, bytes], bytes]:
    """Return the function that makes messages like the one caught."""
    message = json.loads(text)
    head, tail = _body(message)
    message["body"] = _BODY
    message["properties"]["delivery_tag"] = _TAG
    text = dumps(message)
    pick = itemgetter(*(_PLACES.index(found) for found in _AGAIN.findall(text)))
    template = _AGAIN.sub("%b", text.replace("%", "%%")).encode()

    # Tells these messages from earlier ones with the same task ids: kombu keys what is unacknowledged by delivery tag.
    tag = b"%%b.%b" % uuid4().hex[:8].encode()

    def seal(arguments: bytes, task_id: bytes, position: bytes) -> bytes:
        body = b2a_base64(b"%b%b%b" % (head, arguments, tail), newline=False)
        message: bytes = template % pick((body, task_id, position, tag % task_id))
        return message

    return seal


def _body(message: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return what stands before and behind the arguments in the body that Celery made."""
    if message["content-type"] != "application/json" or "compression" in message["headers"]:
        raise EnvelopeError(
            f"Tasks would be sent as {message['content-type']}, or compressed.",
            hint='Set task_serializer = "json" and task_compression = None in celeryconfig.py.',
        )
    if message["properties"].get("body_encoding") != "base64":
        raise EnvelopeError(
            "Messages would not be encoded as base64.",
            hint="Leave body_encoding out of broker_transport_options in celeryconfig.py.",
        )
    body = b64decode(message["body"])
    head, _, tail = body.partition(json.dumps(_ARGUMENT).encode())
    if _ID.encode() in body:
        raise EnvelopeError(
            "Tasks would be sent in Celery's old protocol.",
            hint="Leave task_protocol out of celeryconfig.py.",
        )
    return head, tail


def argsrepr(kind: tuple[str, str, str], position: str) -> str:
    """Return what Flower shows of a task's arguments: which change it is, and nothing of the row."""
    schema, table, event = kind
    name = orjson.dumps(f"{schema}.{table}").decode()[1:-1]
    return f"<{name} {event} {position}>"
