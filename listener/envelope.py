"""Celery's own message for a task, made once and cut into a template: what it says is Celery's, how fast it is ours."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
from celery import Celery
from kombu import Producer
from kombu.utils.json import dumps

from cdc_tasks.errors import CDCError
from listener.router import Route

__all__ = ["Envelope", "EnvelopeError", "Envelopes", "argsrepr"]

_ID, _POSITION, _TAG, _ARGUMENT = ("cdc-0id", "cdc-0position", "cdc-0tag", "cdc-0argument")
_BODY = "cdc-0body"
_PLACES = {_BODY: 0, _ID: 1, _POSITION: 2, _TAG: 3}
_AGAIN = re.compile("|".join(_PLACES))

# Tells this process's messages from those of an earlier one that had the same task id: kombu keys what is
# unacknowledged by delivery tag.
_RUN = uuid4().hex[:8]


class EnvelopeError(CDCError):
    """Celery's settings ask for a kind of message that the listener does not make."""


class Envelope(NamedTuple):
    """The messages of one route and kind of change."""

    keys: tuple[str, ...]  # the Redis lists that such a message goes to
    seal: Callable[[bytes, bytes, bytes], bytes]  # (arguments, task id, position) -> message


class Envelopes:
    """Makes envelopes by letting Celery send a task and catching the message on its way to Redis."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def make(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        """Return the envelope of a route's tasks; talks to the broker, to declare the queue.

        Raises EnvelopeError, and what kombu raises where the broker is away.
        """
        caught = self._catch(route, kind)
        (_, message) = caught[0]
        head, tail = self._body(message)
        message["body"] = _BODY
        message["properties"]["delivery_tag"] = _TAG
        text = dumps(message)
        pick = itemgetter(*(_PLACES[found] for found in _AGAIN.findall(text)))
        template = _AGAIN.sub("%b", text.replace("%", "%%")).encode()

        def seal(arguments: bytes, task_id: bytes, position: bytes) -> bytes:
            body = b2a_base64(b"%b%b%b" % (head, arguments, tail), newline=False)
            return template % pick((body, task_id, position, b"%b.%b" % (task_id, run)))

        run = _RUN.encode()
        return Envelope(tuple(key for key, _ in caught), seal)

    def _catch(self, route: Route, kind: tuple[str, str, str]) -> list[tuple[str, dict[str, Any]]]:
        caught: list[tuple[str, dict[str, Any]]] = []
        options: dict[str, Any] = {"queue": route.queue} if route.queue else {}
        with self._app.connection_for_write() as connection:
            channel: Any = connection.channel()  # kombu's virtual channel: its names have no types

            def catch(queue: str, message: dict[str, Any], **_: object) -> None:
                priority = channel._get_message_priority(message, reverse=False)
                key = channel._q_for_pri(queue, priority)
                caught.append((f"{channel.global_keyprefix}{key}", message))

            channel._put = catch  # where every virtual transport hands its messages over
            self._app.send_task(
                route.task,
                args=[_ARGUMENT],
                task_id=_ID,
                argsrepr=argsrepr(kind, _POSITION),
                kwargsrepr="{}",
                producer=Producer(channel),
                retry=False,
                **options,
            )
        if not caught:
            raise EnvelopeError(
                f"The task {route.task} would go to no queue: nothing is bound to its exchange.",
                hint="Correct task_routes or task_queues in celeryconfig.py.",
            )
        return caught

    @staticmethod
    def _body(message: dict[str, Any]) -> tuple[bytes, bytes]:
        """Return what stands before and behind the arguments in the body that Celery made."""
        if message["content-type"] != "application/json" or "compression" in message["headers"]:
            raise EnvelopeError(
                f"Tasks would be sent as {message['content-type']}, or compressed.",
                hint='Set task_serializer = "json" and task_compression = None in celeryconfig.py.',
            )
        if message["properties"].get("body_encoding") != "base64":
            raise EnvelopeError(
                "body_encoding of broker_transport_options is not base64.",
                hint="Leave it out of celeryconfig.py.",
            )
        body = b64decode(message["body"])
        json.loads(body)
        head, _, tail = body.partition(json.dumps(_ARGUMENT).encode())
        return head, tail


def argsrepr(kind: tuple[str, str, str], position: str) -> str:
    """Return what Flower shows of a task's arguments: which change it is, and nothing of the row."""
    schema, table, event = kind
    name = orjson.dumps(f"{schema}.{table}").decode()[1:-1]
    return f"<{name} {event} {position}>"
