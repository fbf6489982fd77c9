"""How tasks are sent that wait, and for how long they wait, whatever the machines' clocks say.

RabbitMQ has each message in a queue, or the sender knows that it has not.

RabbitMQ keeps the waits, in whole seconds, in queues of Celery's (`celery_delayed_…`): one for each bit of the wait,
each of which sends on to the next. A worker makes them at its start. Celery refuses waits of less than a second; here
they are rounded up. What has waited comes to a topic exchange, to which Celery binds the exchange of the tasks, and we
the queues as well: that exchange may be a direct one of the house's, which takes no routing key with a wait in it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil
from typing import Any, Final

import structlog
from amqp.exceptions import NotFound
from celery import Celery
from celery.bootsteps import StartStopStep
from celery.utils.time import maybe_make_aware
from kombu.common import Broadcast
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from cdc_tasks.broker.delivery_marks import without_marks
from cdc_tasks.retry import UnroutableError

__all__ = [
    "BehindWaits",
    "DelayingCelery",
    "due_at",
    "eta_by_this_clock",
    "with_countdown",
    "without_countdown",
]

log = structlog.get_logger()


class DelayingCelery(Celery):
    """Celery's app; whatever sends a task with a wait comes through here: tasks, signatures, retries, beat."""

    def send_task(  # the stubs name each option
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Send a task by name; `countdown` and `eta` mean the next whole second where RabbitMQ keeps the wait.

        Raises UnroutableError where RabbitMQ has no queue for it.
        """
        is_kept_by_rabbitmq = bool(countdown or eta) and self.has_quorum_queues()
        if is_kept_by_rabbitmq:
            countdown, eta = _whole_seconds(countdown, eta, self.now())
        if options.get("headers"):
            options["headers"] = without_marks(options["headers"])
        if options.get("mandatory") is None:  # as Celery's tasks have it: dropped where no queue is bound
            options["mandatory"] = True
        send = partial(super().send_task, name, args, kwargs, countdown, eta, *more, **options)
        try:
            return send()
        except (NotFound, UnroutableError) as error:
            if not is_kept_by_rabbitmq:
                raise
            log.warning("queues_for_waits_missing", error=str(error))
            _make_queues_for_waits(self)
            return send()

    def has_quorum_queues(self) -> bool:
        """Return whether RabbitMQ keeps the waits."""
        queues = self.amqp.queues.values()
        return any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in queues)


def _make_queues_for_waits(app: Celery) -> None:
    """Do what a worker does at its start; what exists stays as it is."""
    with app.connection_for_write() as connection:
        kind = app.conf.broker_native_delayed_delivery_queue_type
        declare_native_delayed_delivery_exchanges_and_queues(connection, kind)
        for queue in app.amqp.queues.values():
            if not isinstance(queue, Broadcast):
                with suppress(NotFound):  # nobody has made that queue yet: whoever does binds it
                    bind_queue_to_native_delayed_delivery_exchange(connection, queue)
                    _bind_behind_waits(connection, queue)


def _bind_behind_waits(connection: Any, queue: Any) -> None:
    with connection.channel() as channel:
        queue.bind(channel).bind_to(CELERY_DELAYED_DELIVERY_EXCHANGE, routing_key=f"#.{queue.routing_key}")


class BehindWaits(StartStopStep):
    """Binds the queues of a worker to where messages come that have waited."""

    requires = ("celery.worker.consumer.delayed_delivery:DelayedDelivery",)

    def include_if(self, consumer: Any) -> bool:
        """Return whether RabbitMQ keeps the waits of this worker's tasks."""
        return bool(consumer.app.has_quorum_queues())

    def start(self, consumer: Any) -> None:
        """Begin; after a lost connection to the broker, again."""
        with consumer.app.connection_for_write() as connection:
            for queue in consumer.app.amqp.queues.consume_from.values():
                if not isinstance(queue, Broadcast):
                    with suppress(NotFound):  # there are no queues for waits: Celery has said so
                        _bind_behind_waits(connection, queue)


def _whole_seconds(
    countdown: float | None, eta: datetime | str | None, now: datetime
) -> tuple[float | None, datetime | str | None]:
    """Return the wait as a countdown, as Celery counts it: `eta` goes first; what is due is due at once."""
    if eta:
        due = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        countdown = (maybe_make_aware(due) - maybe_make_aware(now)).total_seconds()
    if countdown is None or countdown <= 0:
        return None, eta
    return ceil(countdown), None


# --- How long a message waits, by the sender's and by this clock ----------------------------------------

# Celery's `eta` is a time of the sender's clock. A worker whose clock is behind that would wait for longer, by as much
# as they differ, and hold up what waits for the message. So the sender also says how many seconds the message is to
# wait, and a worker waits for no longer than that.
_COUNTDOWN: Final = "cdc_countdown"  # the message header: seconds
_LONGEST: Final = 1e8  # seconds: three years


def with_countdown(headers: dict[str, Any] | None, countdown: float | None) -> dict[str, Any]:
    """Return headers with this countdown; a retry has got those of the message before, with another one."""
    kept = {name: value for name, value in (headers or {}).items() if name != _COUNTDOWN}
    return kept if countdown is None else {**kept, _COUNTDOWN: float(countdown)}


def without_countdown(headers: dict[str, Any]) -> dict[str, Any]:
    """Return headers of a message whose countdown is over, if it had one."""
    return {**headers, _COUNTDOWN: 0} if _COUNTDOWN in headers else headers


def due_at(headers: dict[str, Any]) -> datetime | None:
    """Return the `eta`; None where there is none, or none that can be read."""
    eta = headers.get("eta")
    if not isinstance(eta, str):
        return None
    try:
        due = datetime.fromisoformat(eta)
    except ValueError:
        return None
    return due.replace(tzinfo=UTC) if due.tzinfo is None else due


def eta_by_this_clock(headers: dict[str, Any], now: datetime) -> str | None:
    """Return when a message that has come now is due at the latest, as its `eta`; None where it is not to wait."""
    eta, countdown = headers.get("eta"), headers.get(_COUNTDOWN)
    if not isinstance(eta, str) or not isinstance(countdown, int | float) or not 0 <= countdown < _LONGEST:
        return eta
    latest = now + timedelta(seconds=countdown)
    due = datetime.fromisoformat(eta)
    due = due.replace(tzinfo=UTC) if due.tzinfo is None else due
    return eta if due <= latest else latest.isoformat()
