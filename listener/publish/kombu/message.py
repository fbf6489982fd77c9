"""A task's message on its way through kombu: Celery makes one for each route, and the others are filled in.

Any broker gets it from `kombu.Producer`. RabbitMQ gets the same bytes without it: `frames.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Producer, Queue
from kombu.compression import compress
from kombu.serialization import dumps
from kombu.utils.encoding import str_to_bytes

from cdc_tasks.routing.router import Call, Route
from listener.publish.task_message import ID, argsrepr, make_message, split_body

__all__ = ["MessageTemplate", "message_template"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTemplate:
    """The messages of one route."""

    task: str
    queue: Queue | None  # None if Celery does not say it; it has to be declared before
    head: bytes  # of the body, before the arguments
    tail: bytes
    headers: dict[str, Any]
    options: dict[str, Any]  # of `kombu.Producer.publish`
    compression: str | None

    def body(self, arguments: bytes) -> bytes:
        """Return the body of a message with these arguments, as it is sent."""
        body = self.head + arguments + self.tail
        return body if self.compression is None else compress(body, self.compression)[0]

    def publish(self, producer: Producer, call: Call) -> None:
        """Send the call's message."""
        change, task_id = call.change, call.id
        shown = argsrepr(change.kind, change.position)
        headers = {**self.headers, "id": task_id, "root_id": task_id, "argsrepr": shown}
        body = self.head + call.arguments + self.tail  # kombu compresses it
        producer.publish(body, headers=headers, **{**self.options, "correlation_id": task_id})

    def publish_unfilled(self, producer: Producer) -> None:
        """Send a message with its places unfilled: those of `task_message`."""
        producer.publish(b"", headers=dict(self.headers), **{**self.options, "correlation_id": ID})


class _Catcher:
    """A stand-in for `kombu.Producer` that keeps what Celery would publish."""

    def publish(self, body: Any, **options: Any) -> None:
        self.body, self.options = body, options


def message_template(app: Celery, route: Route) -> MessageTemplate:
    """Return what the messages of one route have in common; raises EnvelopeError."""
    catcher = _Catcher()
    message, where = make_message(app, route)
    app.amqp.send_task_message(catcher, route.task, message, retry=False, **where)
    options = catcher.options
    headers, serializer, declare = (options.pop(name) for name in ("headers", "serializer", "declare"))
    content_type, encoding, text = dumps(catcher.body, serializer)
    head, tail = split_body(str_to_bytes(text), content_type)
    return MessageTemplate(
        task=route.task,
        queue=declare[0] if declare else None,
        head=head,
        tail=tail,
        headers=headers,
        options=options | {"content_type": content_type, "content_encoding": encoding, "mandatory": True},
        compression=options.get("compression"),
    )
