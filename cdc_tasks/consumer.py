"""Messages that no task of this worker is for: kept as dead letters. Celery would drop them, and log their rows."""

from __future__ import annotations

from typing import Any

import structlog
from celery import signals
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer

from cdc_tasks import dead_letters
from cdc_tasks.cache import CacheAway
from cdc_tasks.errors import CDCError

__all__ = ["Consumer", "UnknownTaskError"]

log = structlog.get_logger()
_logger = get_logger(__name__)


class UnknownTaskError(CDCError):
    """No module of this worker has a task of this name."""


class Consumer(CeleryConsumer):
    """Takes messages from the broker, in the worker's main process."""

    connection_errors: Any  # the stubs leave them out
    event_dispatcher: Any

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        headers = message.headers
        try:
            dead_letters.keep(_letter_of(message))
        except CacheAway as away:
            log.warning(
                "unknown task goes back", name=headers["task"], task_id=headers["id"], error=away.message
            )
            message.reject_log_error(_logger, self.connection_errors, requeue=True)
            return
        message.ack_log_error(_logger, self.connection_errors)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=headers["id"], exception="UnknownTaskError()")
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=headers["task"], id=headers["id"]
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
        hint="name its module in CDC_TASK_MODULES of every worker, and then: "
        f"python -m cdc_tasks dead-letters replay {headers['id']}",
    )
    return dead_letters.letter_of(headers["task"], request, unknown)
