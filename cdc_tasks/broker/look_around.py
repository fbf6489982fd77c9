"""A worker's look around at its start: who else is at the broker is told in its log."""

from __future__ import annotations

from threading import Thread
from typing import Any, Final

import redis
import structlog
from celery.bootsteps import StartStopStep
from kombu.exceptions import KombuError

from cdc_tasks.broker.neighbours import Neighbour, kombus_unacked, queues_taken, strangers

__all__ = ["LookAround"]

_ANSWER_WITHIN: Final = 1.0  # seconds

log = structlog.get_logger()


class LookAround(StartStopStep):
    """Asks the other workers, once; `--without-mingle` leaves it out, as Celery's own questions to others."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, without_mingle: bool = False, **options: Any) -> None:  # noqa: FBT001, FBT002  # Celery's
        super().__init__(consumer, **options)
        self.enabled = not without_mingle
        self._has_looked = False

    def start(self, consumer: Any) -> None:
        """Look around while the worker works: the answers take a second."""
        if not self._has_looked:
            self._has_looked = True
            Thread(target=_look, args=[consumer.app], name="look-around", daemon=True).start()


def _look(app: Any) -> None:
    with app.connection_for_read() as connection:
        try:
            _ask_workers(app, connection)
            if connection.transport.driver_type == "redis":
                _look_at_unacked(app, connection)
        except (
            OSError,
            KombuError,
            redis.RedisError,
            *connection.connection_errors,
            *connection.channel_errors,
        ) as error:
            log.info("neighbours_unknown", error=repr(error))


def _ask_workers(app: Any, connection: Any) -> None:
    inspect = app.control.inspect(timeout=_ANSWER_WITHIN, connection=connection)
    registered, active = inspect.registered() or {}, inspect.active_queues() or {}
    for stranger in strangers(registered, active, app.amqp.queues):
        _warn("foreign_worker_takes_our_tasks", stranger)
    own = set(app.amqp.queues.consume_from)  # this worker does not answer itself yet
    if lacking := set(app.amqp.queues) - own - queues_taken(registered, active):
        log.info("queues_without_worker", queues=sorted(lacking))


def _look_at_unacked(app: Any, connection: Any) -> None:
    with connection.channel() as channel:
        client = redis.Redis(connection_pool=channel.pool)
        if held := kombus_unacked(client, app.amqp.queues, prefix=channel.global_keyprefix):
            _warn("messages_held_with_kombus_transport", held)


def _warn(event: str, neighbour: Neighbour) -> None:
    log.warning(event, who=neighbour.who, found=neighbour.found, hint=neighbour.hint)
