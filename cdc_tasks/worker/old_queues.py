"""Messages in queues with our old names: a worker consumes them until there are none.

A worker consumes from an old queue if it consumes from the new one. It never creates or binds an old queue. On RabbitMQ
it checks for the queue when it connects. On Redis, where a queue exists only while it has a message, it checks every
few seconds. Other applications use such names too: if a worker finds another application's message in a queue, it stops
consuming from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import redis
import structlog
from amqp.exceptions import ChannelError
from celery.bootsteps import StartStopStep
from kombu import Exchange, Queue

from cdc_tasks.broker.queues import OLD_NAMES, queue_name
from cdc_tasks.broker.rabbitmq.queues import existing_queue, throw_away_channel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OldQueues", "leave_if_foreign", "names_our_task"]

log = structlog.get_logger()

_LOOK_EVERY: Final = 10.0  # seconds, on Redis


class OldQueues(StartStopStep):
    """Looks for old queues, and consumes from those that exist."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        consumer.old_queues = self
        self.taken: set[str] = set()
        self._logged: set[tuple[str, str]] = set()
        self._foreign: set[str] = set()
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Start looking, also after each reconnection to the broker."""
        self.stop(consumer)
        kind = consumer.connection.transport.driver_type
        if kind == "amqp":
            self._look_in_rabbitmq(consumer)
        elif kind == "redis":
            self._look_in_redis(consumer)
            self._timer = consumer.timer.call_repeatedly(_LOOK_EVERY, self._look_again, args=(consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  # Celery's signature
        """Stop looking; the consumers ended with their connection."""
        self.taken.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self, consumer: Any, name: str, message: Any) -> None:
        """Stop consuming from this queue: it has a message that is not a task of this worker."""
        self._foreign.add(name)
        self.taken.discard(name)
        consumer.task_consumer.cancel_by_queue(name)
        headers = message.headers if isinstance(message.headers, Mapping) else {}
        self._log_left(name, headers.get("task"))

    def _wanted(self, app: Any) -> Iterator[str]:
        for name in OLD_NAMES:
            is_known = name in app.amqp.queues or name in self._foreign | self.taken
            if not is_known and queue_name(name) in app.amqp.queues.consume_from:
                yield name

    def _look_in_rabbitmq(self, consumer: Any) -> None:
        connection = consumer.task_consumer.channel.connection
        for name in list(self._wanted(consumer.app)):
            try:
                is_there, task = _first_in_rabbitmq(connection, name)
            except ChannelError as error:  # no permission, or an exclusive queue of another connection
                self._log_once("old_queue_closed_to_us", name, error=error.reply_text)
                continue
            if is_there and (task is None or names_our_task(consumer.app, task)):
                self._take(consumer, name)
            elif is_there:
                self._log_left(name, task)

    def _look_in_redis(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        client, prefix = redis.Redis(connection_pool=channel.pool), channel.global_keyprefix
        for name in list(self._wanted(consumer.app)):
            keys = [f"{prefix}{channel._q_for_pri(name, step)}" for step in channel.priority_steps]  # noqa: SLF001  # kombu's lists of a queue
            try:
                if client.exists(*keys):
                    self._look_at(consumer, name, [client.lindex(key, -1) for key in keys])
            except redis.ResponseError as error:  # no permission, or not a list: then the queue is not ours
                self._foreign.add(name)
                log.debug("old_queue_closed_to_us", queue=name, error=repr(error))
            except (redis.RedisError, OSError) as error:
                log.debug("old_queues_unknown", error=repr(error))
                return

    def _look_again(self, consumer: Any) -> None:
        before = set(self.taken)
        self._look_in_redis(consumer)
        if self.taken != before:
            consumer.task_consumer.consume()  # not after the first look, which comes before Celery's own `consume`

    def _look_at(self, consumer: Any, name: str, first: list[Any]) -> None:
        found = [task for task in map(_task_of, filter(None, first)) if task is not None]
        if any(names_our_task(consumer.app, task) for task in found):
            self._take(consumer, name)
        elif found:  # a list whose messages name no task is not a Celery queue
            self._log_left(name, found[0])

    def _take(self, consumer: Any, name: str) -> None:
        self.taken.add(name)
        consumer.task_consumer.add_queue(Queue(name, Exchange(name, type="direct"), name, no_declare=True))
        self._log_once("old_queue_drained", name, now=queue_name(name))

    def _log_left(self, name: str, task: Any) -> None:
        self._log_once(
            "old_queue_left",
            name,
            now=queue_name(name),
            of_task=task,
            reason="It has a message that is not a task of this worker: the queue may be another application's.",
            hint="If the task is yours: add its module to CDC_TASK_MODULES, and restart the worker.",
        )

    def _log_once(self, event: str, name: str, **details: Any) -> None:
        if (event, name) not in self._logged:
            self._logged.add((event, name))
            log.warning(event, queue=name, **details)


def _first_in_rabbitmq(connection: Any, name: str) -> tuple[bool, str | None]:
    """Return whether there is such a queue, and the task of its first message; empty if the message names none.

    The message goes back to the queue. Raise ChannelError if RabbitMQ refuses it.
    """
    if existing_queue(connection, name) is None:
        return False, None
    with throw_away_channel(connection) as channel:
        message = channel.basic_get(queue=name, no_ack=False)
        if message is None:
            return True, None
        headers = message.properties.get("application_headers") or {}
        return True, str(headers.get("task") or "")


def leave_if_foreign(consumer: Any, message: Any) -> bool:
    """If a message that is not our task came from an old queue, give it back and leave that queue.

    Return whether that happened.
    """
    name = None if consumer.old_queues is None else _came_from(consumer, message)
    if name is None:
        return False
    consumer.old_queues.leave(consumer, name, message)
    message.reject_log_error(log, consumer.connection_errors, requeue=True)
    return True


def names_our_task(app: Any, task: Any) -> bool:
    """Return whether this worker has such a task, or the task is one of cdc-tasks' own."""
    return isinstance(task, str) and (task in app.tasks or task.startswith("cdc_tasks."))


def _came_from(consumer: Any, message: Any) -> str | None:
    info = message.delivery_info if isinstance(message.delivery_info, Mapping) else {}
    by_tag = {tag: name for name, tag in consumer.task_consumer._active_tags.items()}  # noqa: SLF001  # a message has no more than its tag
    name = by_tag.get(info.get("consumer_tag"), info.get("routing_key"))
    if name in OLD_NAMES and name not in consumer.app.amqp.queues:
        return str(name)
    return None


def _task_of(raw: bytes) -> str | None:
    try:
        task = json.loads(raw)["headers"]["task"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return task if isinstance(task, str) else None
