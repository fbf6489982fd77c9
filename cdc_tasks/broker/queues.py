"""The names of our queues, their earlier names, and the creation of Celery's default queue on RabbitMQ.

A name has no dot. A RabbitMQ topic consists of words between dots, and delayed delivery binds each queue to
`#.<its name>`. So a message for `cdc.cache` would also go to a queue `cache`, which may belong to another application.
"""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import structlog
from celery.app import amqp
from celery.utils.functional import maybe_list
from kombu import Exchange, Queue
from kombu.connection import maybe_channel

from cdc_tasks.broker.connection import Connection
from cdc_tasks.broker.delivery_marks import without_wait
from cdc_tasks.broker.rabbitmq.partitions import (
    KEYED,
    is_keyed,
    is_partition,
    log_refused,
    partitions_in,
    why_not_ours,
)
from cdc_tasks.broker.rabbitmq.queues import existing_queue
from cdc_tasks.environment import queue_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from celery import Celery

__all__ = [
    "AMQP",
    "OLD_NAMES",
    "DefaultQueue",
    "own_queues",
    "queue_name",
    "queue_of",
    "queue_of_key",
    "runs_tasks_of_default_queue",
    "warn_of_old_name",
]

log = structlog.get_logger()

OLD_NAMES: Final = ("notifications", "cache", "bulk")  # up to version 0.1


def queue_name(kind: str) -> str:
    """Return the name of our queue for `kind`, such as "cache"."""
    return f"{queue_prefix()}{kind}"


class Queues(amqp.Queues):
    """Celery's queues; ours are also found by their old names, unless another queue has that name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked_by_old_name: dict[str, str] = {}

    def __missing__(self, name: str) -> Queue:
        new = self.current_name(name)
        if new == name:
            queue: Queue = super().__missing__(name)
            return queue
        if name not in self.asked_by_old_name:
            self.asked_by_old_name[name] = new
            if structlog.is_configured():  # a command's output must contain only its answer
                warn_of_old_name(name, new)
        return self[new]

    def select(self, include: Iterable[str] | str | None) -> None:
        """Consume only these queues: the `-Q` option."""
        super().select(list(self._current_names(include)))

    def deselect(self, exclude: Iterable[str] | str | None) -> None:
        """Do not consume these queues: the `-X` option."""
        super().deselect(list(self._current_names(exclude)))

    def do_without(self, refused: Mapping[str, str]) -> None:
        """Do not consume these queues for tasks with a key; `refused` has their names with RabbitMQ's errors.

        Messages still go there: a retry of a task with a key goes to its partition, which another worker consumes.
        """
        if not refused:
            return
        self._consume_from = {name: queue for name, queue in self.consume_from.items() if name not in refused}
        log_refused(refused)

    def _current_names(self, names: Iterable[str] | str | None) -> Iterator[str]:
        for name in maybe_list(names) or ():
            if name == queue_name(KEYED):
                yield from partitions_in(self)
            new = self.current_name(name)
            if new != name:
                self.asked_by_old_name[name] = new  # logged later, when the worker's log is set up
            yield new

    def forget(self, name: str) -> None:
        """Remove this queue: it is not consumed, published to or bound."""
        self.deselect(name)
        self.pop(name, None)

    def current_name(self, name: str) -> str:
        """Return the current name of a queue; it differs only for an old name of ours."""
        if name in self or name not in OLD_NAMES:
            return name
        new = queue_name(name)
        return new if new in self else name


def warn_of_old_name(name: str, new: str) -> None:
    """Log that a queue was requested by its old name."""
    log.warning("queue_has_a_new_name", queue=name, now=new, hint=f"Write {new} instead of {name}.")


class AMQP(amqp.AMQP):
    """Celery's AMQP with our connections, and with queues that are also found by their old names."""

    Connection = Connection
    queues_cls = Queues
    queues: Any  # the stubs have Celery's

    @cached_property
    def default_queue(self) -> Any:
        """Return the queue of tasks that no setting routes; None in a worker that has removed it."""
        return self.queues.get(self.app.conf.task_default_queue)

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **options: Any) -> Any:  # noqa: N802  # Celery's name
        """Return a consumer of the worker's queues without partitions, which have their own channels."""
        accept = self.app.conf.accept_content if accept is None else accept
        if not queues:
            self._make_keyed_queues(channel)
        every = list(queues or self.queues.consume_from.values())
        taken = [each for each in every if not is_partition(each)]
        return self.Consumer(channel, accept=accept, queues=taken, **options)

    def _make_keyed_queues(self, channel: Any) -> None:
        """Create the worker's queues for tasks with a key; leave out those that RabbitMQ refuses."""
        keyed = [each for each in self.queues.consume_from.values() if is_keyed(each)]
        if not keyed or self.app.connection_for_read().transport.driver_type != "amqp":
            return
        opened: Any = maybe_channel(channel)  # the stubs leave out its connection
        connection = opened.connection
        answers = {each.name: why_not_ours(connection, each) for each in keyed}
        self.queues.do_without({name: error for name, error in answers.items() if error is not None})


class DefaultQueue(Queue):
    """Celery's default queue on RabbitMQ, which other applications' workers may use too.

    If it is missing, it is created with Celery's arguments: with other arguments, other applications' workers would not
    start. It is also bound to our topic exchange, so that delayed delivery works for it.
    """

    def _create_queue(self, nowait: bool = False, channel: Any = None) -> None:  # noqa: FBT001, FBT002  # kombu's
        channel = channel or self.channel
        if existing_queue(channel.connection, self.name) is None:
            as_celery_does = Queue(self.name, Exchange(self.name, type="direct"), routing_key=self.name)
            as_celery_does(channel).declare()
        self.queue_bind(nowait=nowait, channel=channel)


def runs_tasks_of_default_queue(app: Celery) -> bool:
    """Return whether this app has tasks that go to Celery's default queue, or if that queue is ours."""
    default = app.conf.task_default_queue
    if default.startswith(queue_name("")):
        return True
    names = [name for name in app.tasks if not name.startswith("celery.")]
    return any(queue_of(app, name) == default for name in names)


def queue_of(app: Celery, task: str) -> str | None:
    """Return the queue to which the settings route a task; None if they route it to an exchange."""
    queue = app.amqp.router.route({}, task).get("queue")
    return None if queue is None else str(queue.name)


def queue_of_key(app: Celery, key: Any, *, exchange: str | None = None) -> str | None:
    """Return the queue that a message came from, by its routing key and exchange; None if that is unknown.

    Without an exchange the routing key is the queue's name. With an exchange, several queues may be bound with that
    key: then None is returned, and the exchange has to be used instead.
    """
    if not isinstance(key, str):
        return None
    key, queues = without_wait(key), app.amqp.queues
    if exchange:
        bound = [
            queue.name
            for queue in queues.values()
            if (queue.exchange.name, queue.routing_key) == (exchange, key)
        ]
        if bound:
            return bound[0] if len(bound) == 1 else None
    name: str = queues.current_name(key) if isinstance(queues, Queues) else key
    return name if name in queues else None


def own_queues(app: Celery, needed: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Return the queues of the settings; Celery's default queue, which others may use too, only if `needed` has it."""
    default = app.conf.task_default_queue
    return [name for name in app.amqp.queues if name != default or name in needed]
