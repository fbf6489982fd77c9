"""How tasks are sent that wait, and how others are: so that RabbitMQ has each in a queue, or the sender knows.

RabbitMQ keeps the waits, in whole seconds, in queues of Celery's (`celery_delayed_…`): one for each bit of the wait,
each of which sends on to the next. A worker makes them at its start. Celery refuses waits of less than a second; here
they are rounded up. What has waited comes to a topic exchange, to which Celery binds the exchange of the tasks, and we
the queues as well: that exchange may be a direct one of the house's, which takes no routing key with a wait in it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from functools import partial
from math import ceil
from typing import Any

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

__all__ = ["BehindWaits", "DelayingCelery"]

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
