"""The worker's consumer: malformed messages and those of unknown tasks become dead letters.

Celery would drop messages of unknown tasks and log their rows, and some malformed messages would stop its worker.
"""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import ContentDisallowed, DecodeError

from cdc_tasks.broker.delays import due_at, eta_by_this_clock
from cdc_tasks.broker.delivery_marks import came_from
from cdc_tasks.broker.message_groups import hold_key
from cdc_tasks.broker.redis.later import is_to_wait
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.dead_letters.malformed_messages import (
    SHAPE_ERRORS,
    MalformedMessageError,
    check_body,
    check_headers,
    check_mapping,
    keep_malformed,
)
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import NO_PARTS, parts_of
from cdc_tasks.worker import (  # each process runs the handlers of their signals
    garbage,  # noqa: F401
    orphans,  # noqa: F401
)
from cdc_tasks.worker.deferred_retries import send_when_unblocked
from cdc_tasks.worker.keyed_messages import start_keyed_messages
from cdc_tasks.worker.old_queues import leave_if_foreign

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Consumer", "UnknownTaskError"]

log = structlog.get_logger()
_logger = get_logger(__name__)


class UnknownTaskError(CDCError):
    """No module of this worker has a task with this name."""


class Consumer(CeleryConsumer):
    """Consumes messages from the broker, in the worker's main process."""

    connection: Any  # the stubs leave them out
    connection_errors: Any
    event_dispatcher: Any
    hub: Any
    keyed_messages: Any = None  # set by `KeyedQueues`
    old_queues: Any = None  # set by `OldQueues`
    task_consumer: Any
    strategies: Any
    _take: Callable[[Any], None]

    def on_ready(self) -> None:
        """Start as Celery does, then send the retries that waited for the end of a broker alarm."""
        super().on_ready()
        start_keyed_messages(self, self._take)
        parts = parts_of(self.app) or NO_PARTS
        if self.hub is None or self.connection.transport.driver_type != "amqp":
            return
        if parts.retries and parts.transport:
            send_when_unblocked(self.hub, self.app)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return the function that handles a message: Celery's, after a check that the message is a task's."""
        take = super().create_task_handler(*args, **kwargs)

        def take_readable(message: Any) -> None:
            try:
                if "task" in check_mapping(message.headers):
                    check_headers(message.headers)
                    check_body(message.payload)
                    message.headers["eta"] = eta_by_this_clock(message.headers, datetime.now(UTC))
            except (MalformedMessageError, DecodeError, ContentDisallowed, *SHAPE_ERRORS) as error:
                self._keep(message, repr(error))
                return
            if not self._puts_off(message):
                take(message)

        self._take = take_readable
        return take_readable

    def _puts_off(self, message: Any) -> bool:
        """Put a message that is due later into Redis; return whether it waits there."""
        later, headers = getattr(message.channel, "later", None), message.headers
        due = due_at(headers)
        if later is None or due is None or message.channel.claimed != message.delivery_tag:
            return False
        if headers.get("task") not in self.strategies or headers["id"] in state.revoked:
            return False  # Celery handles it at once
        wait = (due - datetime.now(UTC)).total_seconds()
        unacknowledged = _number_kept(message.channel)
        if not is_to_wait(wait, unacknowledged=unacknowledged, size=len(message.body)):
            return False
        return bool(later.put(message, due))

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002  # Celery's signature
        if not leave_if_foreign(self, message):
            self._keep(message, "It does not name a task.")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        self._keep(message, repr(exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._keep(message, repr(exc))

    def _keep(self, message: Any, reason: str) -> None:
        try:
            keep_malformed(_raw(message), reason=reason, queue=came_from(message.delivery_info))
        except CacheAwayError as away:
            log.warning("malformed_message_goes_back", error=away.message)
            message.reject_log_error(_logger, self.connection_errors, requeue=True)
            return
        message.ack_log_error(_logger, self.connection_errors)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        if leave_if_foreign(self, message):
            return
        headers = message.headers
        try:
            dead_letters.keep(_letter_of(message))
        except CacheAwayError as away:
            log.warning(
                "unknown_task_goes_back", name=headers["task"], task_id=headers["id"], error=away.message
            )
            message.reject_log_error(_logger, self.connection_errors, requeue=True)
            return
        hold_key(message)
        message.ack_log_error(_logger, self.connection_errors)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=headers["id"], exception="UnknownTaskError()")
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=headers["task"], id=headers["id"]
        )


def _number_kept(channel: Any) -> int:
    """Return the number of messages that this worker keeps until they are due.

    Celery before 5.7 does not count them: then it is the number of all its unacknowledged messages.
    """
    kept = getattr(state, "scheduled_requests", None)
    if kept is not None:
        return len(kept)
    return len(channel.qos._delivered) - len(channel.qos._dirty)  # noqa: SLF001  # our transport's


def _raw(message: Any) -> str:
    """Return headers and body of a message as JSON; a body of bytes is in base64."""
    body = message.body
    if isinstance(body, bytes | bytearray | memoryview):
        body = {"base64": b64encode(bytes(body)).decode()}
    return json.dumps(
        {"headers": message.headers, "content-type": message.content_type, "body": body}, default=repr
    )


def _letter_of(message: Any) -> dead_letters.DeadLetter:
    arguments, keywords, _embedded = message.payload
    headers = message.headers
    request = Context(
        id=headers["id"],
        args=arguments,
        kwargs=keywords,
        delivery_info=message.delivery_info,
        headers=headers,
    )
    unknown = UnknownTaskError(
        f"No module of this worker has a task {headers['task']}.",
        hint="add its module to CDC_TASK_MODULES of every worker, and then: "
        f"python -m cdc_tasks dead-letters replay {headers['id']}",
    )
    return dead_letters.letter_of(headers["task"], request, unknown)
