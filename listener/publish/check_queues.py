"""Checks that RabbitMQ's queues match the settings. A queue that differs is used as it is, and reported here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from amqp.exceptions import AccessRefused, ChannelError, PreconditionFailed
from celery import Celery
from kombu import Queue
from kombu.transport import pyamqp

from cdc_tasks.broker.rabbitmq.queues import existing_queue, throw_away_channel
from listener.core.findings import Finding, State

__all__ = ["check_queues", "consumers_of"]


def check_queues(app: Celery, queues: Iterable[Queue]) -> Iterator[Finding]:
    """Yield a finding about each of these queues, without creating one."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        for queue in queues:
            yield _check(connection.connection, queue)


def consumers_of(app: Celery, name: str) -> int:
    """Return how many consumers a queue has."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        found = existing_queue(connection.connection, name)
    return 0 if found is None else int(found.consumer_count)


def _check(connection: Any, queue: Any) -> Finding:
    what = f"queue {queue.name}"
    try:
        if existing_queue(connection, queue.name) is None:
            return Finding(
                what=what, code="queue", found="does not exist yet: the first listener or worker creates it"
            )
        with throw_away_channel(connection) as channel:
            pyamqp.Channel.queue_declare(
                channel,
                queue=queue.name,
                durable=queue.durable,
                exclusive=queue.exclusive,
                auto_delete=queue.auto_delete,
                arguments=channel.prepare_queue_arguments(
                    queue.queue_arguments or {},
                    expires=queue.expires,
                    message_ttl=queue.message_ttl,
                    max_length=queue.max_length,
                    max_length_bytes=queue.max_length_bytes,
                    max_priority=queue.max_priority,
                ),
            )
    except PreconditionFailed as error:
        return Finding(
            what=what,
            state=State.WARNING,
            code="queue_differs",
            found=f"used as it is, but differs from the settings: {error.reply_text}",
            hint="Nothing to do if other programs need it this way. "
            f"Otherwise stop all its users, drain it, and: rabbitmqctl delete_queue {queue.name}",
        )
    except AccessRefused:
        return Finding(what=what, code="queue", found="used as it is: this user may not inspect it")
    except ChannelError as error:
        return Finding(
            what=what,
            state=State.PROBLEM,
            code="queue_unusable",
            found=f"cannot be used: {error.reply_text}",
            hint=f"See which connection owns it: rabbitmqctl list_queues name owner_pid | grep {queue.name}",
        )
    return Finding(what=what, code="queue", found="as the settings say")
