"""A task's message as kombu's producer takes it, made once by Celery and filled in for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery
from kombu import Queue
from kombu.serialization import dumps
from kombu.utils.encoding import str_to_bytes

from cdc_tasks.routing.router import Route
from listener.publish.task_message import Kind, argsrepr, make_message, split_body

__all__ = ["Message", "Sealed", "sealing"]


class Message(NamedTuple):
    """One task on its way."""

    task: str
    queue: Queue | None  # where it goes, as far as Celery says; it has to be declared before
    body: bytes
    options: dict[str, Any]  # of `kombu.Producer.publish`


Sealed = Callable[[bytes, str, Kind, str], Message]  # (arguments, task id, kind, position) -> message


class _Catcher:
    """Stands in for a `kombu.Producer`, and keeps what Celery would publish."""

    def publish(self, body: Any, **options: Any) -> None:
        self.body, self.options = body, options


def sealing(app: Celery, route: Route) -> Sealed:
    """Return the function that makes the messages of one route; raises EnvelopeError."""
    catcher = _Catcher()
    message, where = make_message(app, route)
    app.amqp.send_task_message(catcher, route.task, message, retry=False, **where)
    options = catcher.options
    headers, serializer, declare = (options.pop(name) for name in ("headers", "serializer", "declare"))
    content_type, encoding, text = dumps(catcher.body, serializer)
    head, tail = split_body(str_to_bytes(text), content_type)
    options |= {"content_type": content_type, "content_encoding": encoding, "mandatory": True}
    queue = declare[0] if declare else None

    def seal(arguments: bytes, task_id: str, kind: Kind, position: str) -> Message:
        mine = {**headers, "id": task_id, "root_id": task_id, "argsrepr": argsrepr(kind, position)}
        filled = {**options, "headers": mine, "correlation_id": task_id}
        return Message(route.task, queue, b"%b%b%b" % (head, arguments, tail), filled)

    return seal
