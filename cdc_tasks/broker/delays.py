"""Messages with a delay: sending them on RabbitMQ, and waiting for the right time even if machines' clocks differ.

On RabbitMQ a delayed message waits in Celery's queues (`celery_delayed_…`): one for each bit of the delay in whole
seconds, and each forwards to the next. A worker makes these queues when it starts. Celery refuses delays of less than a
second; we round them up. A message whose delay is over goes to a topic exchange. Celery binds the tasks' exchange to
it. We also bind the queues: the tasks' exchange may be an existing direct exchange, which cannot match a routing key
that begins with a delay.

By default every message is published as mandatory, so the sender gets an error if RabbitMQ has no queue for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil
from typing import Any, Final

import structlog
from amqp.exceptions import NotFound
from celery.bootsteps import StartStopStep
from celery.utils.time import maybe_make_aware
from kombu.common import Broadcast

from cdc_tasks.broker.delivery_marks import without_marks
from cdc_tasks.broker.rabbitmq import held_keys
from cdc_tasks.broker.rabbitmq.partitions import partition_for, partitions_of
from cdc_tasks.broker.rabbitmq.queues import throw_away_channel
from cdc_tasks.retry import UnroutableError
from cdc_tasks.routing.message_groups import KEY_HEADER
from cdc_tasks.versions import celery_is

__all__ = [
    "BindToDelayedDelivery",
    "DelayingApp",
    "bind_to_delays",
    "due_at",
    "eta_by_this_clock",
    "with_countdown",
    "without_countdown",
]

log = structlog.get_logger()


class DelayingApp:
    """A mixin, before Celery's app among a class's bases.

    All code that sends a task calls `send_task`: tasks, signatures, retries, beat.
    """

    def send_task(
        self: Any,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Send a task by name; if the delay is kept by RabbitMQ, it is rounded up to whole seconds.

        Raise UnroutableError if RabbitMQ has no queue for the task.
        """
        is_kept_by_rabbitmq = bool(countdown or eta) and _has_quorum_queues(self)
        if is_kept_by_rabbitmq:
            countdown, eta = _whole_seconds(countdown, eta, self.now())
        if options.get("headers"):
            options["headers"] = without_marks(options["headers"])
            key = options["headers"].get(KEY_HEADER)
            if isinstance(key, str):
                options |= self._in_partition(key, name, options)
        if options.get("mandatory") is None:  # Celery's default lets RabbitMQ drop a message without a queue
            options["mandatory"] = True
        sends = super().send_task  # type: ignore[misc]  # Celery's
        send = partial(sends, name, args, kwargs, countdown, eta, *more, **options)
        try:
            return send()
        except (NotFound, UnroutableError) as error:
            if not is_kept_by_rabbitmq:
                raise
            log.warning("queues_for_waits_missing", error=str(error))
            _make_delay_queues(self)
            return send()

    def _in_partition(self: Any, key: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the partition of a task with a key on RabbitMQ. If the task is a retry, make it own the key."""
        partitions = partitions_of(self)
        if not partitions:
            return {}
        if options.get("retries"):
            held_keys.hold(key, str(options["task_id"]), name, "retry", retries=options["retries"])
        queue = partitions[partition_for(key, list(partitions))]
        return {"queue": queue, "exchange": queue.exchange.name, "routing_key": queue.routing_key}


def _has_quorum_queues(app: Any) -> bool:
    """Return whether RabbitMQ keeps the delays: Celery's delayed delivery needs quorum queues."""
    if not celery_is(5, 5):
        return False
    queues = app.amqp.queues.values()
    return any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in queues)


def _make_delay_queues(app: Any) -> None:
    """Create the queues that a worker creates when it starts; existing ones are not changed."""
    from kombu.transport import native_delayed_delivery

    with app.connection_for_write() as connection:
        kind = app.conf.broker_native_delayed_delivery_queue_type
        native_delayed_delivery.declare_native_delayed_delivery_exchanges_and_queues(connection, kind)
        for queue in app.amqp.queues.values():
            if not isinstance(queue, Broadcast):
                with suppress(NotFound):  # the queue does not exist yet; the worker that creates it binds it
                    native_delayed_delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
                    _bind_to_delayed_delivery(connection, queue)


def bind_to_delays(app: Any, connection: Any, queue: Any) -> None:
    """Bind a queue to the exchange for messages whose delay is over, if RabbitMQ keeps this app's messages."""
    if _has_quorum_queues(app):
        with suppress(NotFound):  # there are no queues for delays: Celery has logged that
            _bind_to_delayed_delivery(connection, queue)


def _bind_to_delayed_delivery(connection: Any, queue: Any) -> None:
    # Not at the top: kombu before 5.5 has no such module.
    from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE

    with throw_away_channel(connection) as channel:
        queue.bind(channel).bind_to(CELERY_DELAYED_DELIVERY_EXCHANGE, routing_key=f"#.{queue.routing_key}")


class BindToDelayedDelivery(StartStopStep):
    """Binds a worker's queues to the exchange for messages whose delay is over."""

    requires = (
        "celery.worker.consumer.delayed_delivery:DelayedDelivery"
        if celery_is(5, 5)
        else "celery.worker.consumer.tasks:Tasks",
    )

    def include_if(self, consumer: Any) -> bool:
        """Return whether RabbitMQ keeps the delays of this worker's tasks."""
        return _has_quorum_queues(consumer.app)

    def start(self, consumer: Any) -> None:
        """Bind the queues, also after each reconnection to the broker."""
        with consumer.app.connection_for_write() as connection:
            for queue in consumer.app.amqp.queues.consume_from.values():
                if not isinstance(queue, Broadcast):
                    with suppress(NotFound):  # there are no queues for delays: Celery has logged that
                        _bind_to_delayed_delivery(connection, queue)


def _whole_seconds(
    countdown: float | None, eta: datetime | str | None, now: datetime
) -> tuple[float | None, datetime | str | None]:
    """Return the delay as a countdown; as in Celery, `eta` has precedence. A past `eta` means no delay."""
    if eta:
        due = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        countdown = (maybe_make_aware(due) - maybe_make_aware(now)).total_seconds()
    if countdown is None or countdown <= 0:
        return None, eta
    return ceil(countdown), None


# --- How long a message waits, by the sender's clock and by this one ------------------------------------

# Celery's `eta` is a time of the sender's clock. A worker whose clock is slow would wait longer, by the difference of
# the clocks. So the sender also sets a header with the number of seconds, and a worker waits no longer than that.
_COUNTDOWN: Final = "cdc_countdown"  # a message header: seconds
_MAX_COUNTDOWN: Final = 1e8  # seconds: three years


def with_countdown(headers: dict[str, Any] | None, countdown: float | None) -> dict[str, Any]:
    """Return headers with this countdown, which replaces that of an earlier attempt."""
    kept = {name: value for name, value in (headers or {}).items() if name != _COUNTDOWN}
    return kept if countdown is None else {**kept, _COUNTDOWN: float(countdown)}


def without_countdown(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers with a countdown of 0, if they have a countdown."""
    return {**headers, _COUNTDOWN: 0} if _COUNTDOWN in headers else headers


def due_at(headers: dict[str, Any]) -> datetime | None:
    """Return the `eta`; None if there is none, or if it cannot be read."""
    eta = headers.get("eta")
    if not isinstance(eta, str):
        return None
    try:
        due = datetime.fromisoformat(eta)
    except ValueError:
        return None
    return due.replace(tzinfo=UTC) if due.tzinfo is None else due


def eta_by_this_clock(headers: dict[str, Any], now: datetime) -> str | None:
    """Return the `eta` of a message that arrives now, no later than its countdown allows; None if it has none."""
    eta, countdown = headers.get("eta"), headers.get(_COUNTDOWN)
    if (
        not isinstance(eta, str)
        or not isinstance(countdown, int | float)
        or not 0 <= countdown < _MAX_COUNTDOWN
    ):
        return eta
    latest = now + timedelta(seconds=countdown)
    due = datetime.fromisoformat(eta)
    due = due.replace(tzinfo=UTC) if due.tzinfo is None else due
    return eta if due <= latest else latest.isoformat()
