"""Retries that RabbitMQ did not take while its alarm was on: kept in Redis, and sent when it is over.

Given back to its queue, such a task would come again at once, ahead of all others, and a quorum queue drops what
comes back too often.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import structlog
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError

from cdc_tasks import cache
from cdc_tasks.celery import app
from cdc_tasks.retry import BrokerBlockedError

if TYPE_CHECKING:
    from celery import Signature

__all__ = ["defer", "send_deferred_retries", "send_when_unblocked"]

log = structlog.get_logger()

_KEY = "cdc:held-retries"  # a hash: task id, the retry
_SENT_WITHIN = 60  # seconds, by one worker; then another may try


def defer(retry: Signature[Any], *, wait: float) -> Ignore:
    """Keep a retry that is to be sent with this wait; what is returned takes its message off the queue.

    Raises CacheAwayError.
    """
    record = json.dumps({"wait": wait, "retry": retry}, default=str)
    with cache.errors_translated():
        cache.client().hset(_KEY, retry.options["task_id"], record)
    log.warning("retry_held", of_task=retry.task, reason="RabbitMQ takes no messages: its alarm is on.")
    return Ignore("RabbitMQ does not take the retry now: it is kept in Redis.")


@app.task(name="cdc_tasks.send_held_retries")
def send_deferred_retries() -> None:
    """Send what is held; does nothing while another worker does."""
    with cache.errors_translated():
        lock = cache.client().lock(f"{_KEY}:sending", timeout=_SENT_WITHIN, blocking=False)
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
    app.signature(entry["retry"]).apply_async(countdown=entry["wait"])


def send_when_unblocked(hub: Any) -> None:
    """Have the held retries sent now, and whenever RabbitMQ takes messages again; `hub` is the worker's event loop."""
    from cdc_tasks.broker.rabbitmq import transport

    owner = os.getpid()

    def ask() -> None:
        if os.getpid() == owner:  # not in a process of the pool
            hub.call_soon(_ask)

    transport.after_unblocked[:] = [ask]
    ask()


def _ask() -> None:
    try:
        with (
            app.connection_for_write() as connection
        ):  # one of the pool may be as dead as the one that was lost
            options: dict[str, Any] = {"retry": False, "connection": connection}
            send_deferred_retries.apply_async(**options)
    except (BrokerBlockedError, OperationalError) as error:
        log.warning("held_retries_wait", error=repr(error))
