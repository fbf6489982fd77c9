"""Retries that RabbitMQ refused while its alarm was on: they are kept in Redis, and sent when the alarm is over.

If the task went back to its queue instead, it would be delivered again at once, before all others, and a quorum queue
drops messages that come back too often.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import structlog
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError

from cdc_tasks import cache
from cdc_tasks.installed import current_app, is_foreign
from cdc_tasks.retry import BrokerBlockedError

if TYPE_CHECKING:
    from celery import Celery, Signature

__all__ = ["SEND", "defer", "send_deferred_retries", "send_when_unblocked"]

log = structlog.get_logger()

SEND = "cdc_tasks.send_held_retries"  # the name of the task

_KEY = "cdc:held-retries"  # a hash: task id, the retry
_LOCK_TIMEOUT = 60  # seconds for one worker to send them; then another may try


def defer(retry: Signature[Any], *, wait: float) -> Ignore:
    """Keep a retry, to be sent with this delay; return the exception that acknowledges its message.

    Raise CacheAwayError if Redis is down.
    """
    record = json.dumps({"wait": wait, "retry": retry}, default=str)
    with cache.errors_translated():
        cache.client().hset(_KEY, retry.options["task_id"], record)
    log.warning("retry_deferred", of_task=retry.task, reason="RabbitMQ accepts no messages: its alarm is on.")
    return Ignore("RabbitMQ does not accept the retry now: it is kept in Redis.")


def send_deferred_retries() -> None:
    """Send the deferred retries, unless another worker is sending them."""
    with cache.errors_translated():
        lock = cache.client().lock(f"{_KEY}:sending", timeout=_LOCK_TIMEOUT, blocking=False)
        if not lock.acquire():
            return
        try:
            for task_id, record in list(cache.client().hscan_iter(_KEY)):
                _send(json.loads(record))
                cache.client().hdel(_KEY, task_id)
        finally:
            if lock.owned():
                lock.release()


def _send(entry: dict[str, Any]) -> None:
    current_app().signature(entry["retry"]).apply_async(countdown=entry["wait"])


def send_when_unblocked(hub: Any, app: Celery) -> None:
    """Send the deferred retries now and after each alarm of RabbitMQ; `hub` is the worker's event loop.

    A task sends them; in an application's own app it goes to the first queue that this worker consumes from.
    """
    from cdc_tasks.broker.rabbitmq import transport

    owner = os.getpid()

    def ask() -> None:
        if os.getpid() == owner:  # not in a process of the pool
            hub.call_soon(_ask, app)

    transport.after_unblocked[:] = [ask]
    ask()


def _ask(app: Celery) -> None:
    try:
        # Not from the pool: its connection may be as dead as the lost one.
        with app.connection_for_write() as connection:
            queue = next(iter(app.amqp.queues.consume_from)) if is_foreign(app) else None
            options: dict[str, Any] = {"retry": False, "connection": connection, "queue": queue}
            app.tasks[SEND].apply_async(**options)
    except (BrokerBlockedError, OperationalError) as error:
        log.warning("deferred_retries_wait", error=repr(error))
