"""A task's message for kombu: Celery creates one per route, and the others are filled in from it.

Other brokers get it from `kombu.Producer`, RabbitMQ gets the same bytes from `frames.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

from celery import Celery
from kombu import Producer, Queue
from kombu.compression import compress
from kombu.serialization import dumps
from kombu.utils.encoding import str_to_bytes

from cdc_tasks.broker.rabbitmq.delayed_delivery import can_delay, delayed
from cdc_tasks.broker.rabbitmq.partitions import partition_for
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import KEY_HEADER, headers_of_key
from cdc_tasks.routing.router import Call, Route
from listener.publish.task_message import (
    CONTEXT,
    ID,
    TRACE,
    EnvelopeError,
    Timing,
    argsrepr,
    make_message,
    split_body,
)

__all__ = ["KEY", "MessageTemplate", "message_template", "partition_of"]

KEY: Final = "cdc-0key"  # a place in a message, as those of `task_message`


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTemplate:
    """The messages of one route."""

    task: str
    queue: Queue | None  # None if Celery does not name it; it has to be declared first
    is_delayed: bool  # RabbitMQ keeps them until they are due
    parts: tuple[bytes, bytes, bytes]  # of the body: before, between and after the two kinds of arguments
    timing: Timing | None
    headers: dict[str, Any]
    options: dict[str, Any]  # of `kombu.Producer.publish`
    compression: str | None
    has_context: bool  # the context of its transaction is one of the headers
    has_key: bool  # its message group's key is one of the headers

    @property
    def exchange(self) -> str:
        """The exchange that they are sent to; "" is the broker's own."""
        exchange = self.options.get("exchange")
        return str(getattr(exchange, "name", exchange) or "")

    def body(self, call: Call) -> bytes:
        """Return the body of the call's message as sent."""
        body = self._plain_body(call)
        return body if self.compression is None else compress(body, self.compression)[0]

    def publish(self, producer: Producer, call: Call, trace: Mapping[str, str]) -> None:
        """Send the call's message; `trace` are headers that name its trace."""
        change, task_id = call.change, call.id
        shown = argsrepr(change.kind, change.position)
        headers = {**self.headers, "id": task_id, "root_id": task_id, "argsrepr": shown}
        if self.timing:
            headers |= self.timing.headers()
        if self.has_key:
            headers[KEY_HEADER] = call.key
        if (context := change.commit.context) is not None:
            headers[CONTEXT_HEADER] = dict(context.values)
            del headers[TRACE]
            headers |= trace
        options = {**self.options, "correlation_id": task_id}
        producer.publish(self._plain_body(call), headers=headers, **options)  # kombu compresses it

    def publish_unfilled(self, producer: Producer) -> None:
        """Send a message with its places unfilled: those of `task_message`."""
        producer.publish(b"", headers=dict(self.headers), **{**self.options, "correlation_id": ID})

    def _plain_body(self, call: Call) -> bytes:
        head, middle, end = self.parts
        return b"%b%b%b%b%b" % (head, call.arguments, middle, call.kwargs, end)


class _Catcher:
    """A stand-in for `kombu.Producer` that keeps what Celery would publish."""

    def publish(self, body: Any, **options: Any) -> None:
        self.body, self.options = body, options


def partition_of(partitions: Sequence[str], route: Route, key: str) -> str:
    """Return the queue for the tasks with this key on RabbitMQ, whatever queue the route names.

    Raise EnvelopeError if the app has no such queues.
    """
    if not partitions:
        raise EnvelopeError(
            f"The task {route.task} has a key, but the app has no queues on RabbitMQ for tasks with a key.",
            hint="Add them to the app, with a CDC_CACHE_URL for its workers: cdc_tasks.install(app)   "
            "or leave key= out, or use Redis as the broker.",
            code="no_partitions",
        )
    return partition_for(key, partitions)


def message_template(
    app: Celery,
    route: Route,
    *,
    partition: Queue | None = None,
    has_key: bool = False,
    has_context: bool = False,
) -> MessageTemplate:
    """Return the common part of one route's messages. Raise EnvelopeError.

    `partition` is the queue of those with a key, on RabbitMQ. `has_context`: their transaction has a context.
    """
    catcher = _Catcher()
    message, where, timing = make_message(app, route, queue=partition)
    if has_key:
        message.headers.update(headers_of_key(KEY, route.on_failure))
    if has_context:
        message.headers.update({CONTEXT_HEADER: CONTEXT, TRACE: TRACE})
    delay = _delay_on_rabbitmq(app, where, timing)
    kept = where.get("queue")
    if delay is not None and timing is not None:
        where, timing = delayed(where, delay), replace(timing, countdown=delay)
    app.amqp.send_task_message(catcher, route.task, message, retry=False, **where)
    options = catcher.options
    headers, serializer, declare = (options.pop(name) for name in ("headers", "serializer", "declare"))
    content_type, encoding, text = dumps(catcher.body, serializer)
    options |= {"content_type": content_type, "content_encoding": encoding, "mandatory": True}
    return MessageTemplate(
        task=route.task,
        queue=kept if delay is not None else declare[0] if declare else None,
        is_delayed=delay is not None,
        parts=split_body(str_to_bytes(text)),
        timing=timing,
        headers=headers,
        options=options,
        compression=options.get("compression"),
        has_context=has_context,
        has_key=has_key,
    )


def _delay_on_rabbitmq(app: Celery, where: Mapping[str, Any], timing: Timing | None) -> int | None:
    """Return how many seconds RabbitMQ delays the message; None if a worker delays it instead."""
    if timing is None or timing.countdown is None:
        return None
    with app.connection_for_write() as connection:
        is_amqp = connection.transport.driver_type == "amqp"
    return ceil(timing.countdown) if is_amqp and can_delay(app, where) else None
