"""Sending through kombu, to any broker that it supports; on RabbitMQ a message counts once it is confirmed."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from time import monotonic
from typing import Any, Final

import structlog
from amqp import exceptions as amqp
from amqp import spec
from celery import Celery
from kombu import Producer, Queue
from kombu.exceptions import OperationalError

from cdc_tasks.broker.rabbitmq.delayed_delivery import bind_to_delays
from cdc_tasks.broker.rabbitmq.partitions import partitions_of
from cdc_tasks.broker.rabbitmq.queues import (
    bind_if_allowed,
    existing_queue,
    exists_exchange,
    throw_away_channel,
)
from cdc_tasks.routing.router import Call
from listener.core.publisher import BrokerAwayError, BrokerError, MessageTooLargeError
from listener.core.retry import Retry
from listener.publish.kombu.confirms import Confirms
from listener.publish.kombu.frames import Frames, Render
from listener.publish.kombu.message import MessageTemplate, message_template, partition_of
from listener.publish.kombu.socket_writer import socket_settings, wait_without_limit, write_frames
from listener.publish.redis.connection import address_of, bad_certificate
from listener.publish.spans import Spans
from listener.publish.task_message import EnvelopeError, Kind, durable_queues

__all__ = ["Delivery", "KombuSender", "UnroutableError"]

log = structlog.get_logger()

_HEARTBEAT: Final = 10  # seconds, if celeryconfig.py has none
_TICK: Final = 0.5  # seconds between two heartbeats, and between two checks for a stop
_CONFIRM_TIMEOUT = 15.0  # seconds without a confirm; then the rest is sent again
_AT_ONCE: Final = 64 * 1024  # bytes written at a time; then the broker's data is read
_MOST_REMEMBERED: Final = 20_000  # kinds of change, each with a route
_LARGE: Final = 1_000_000  # bytes: such a message may be refused, so others are confirmed before it
_LARGEST: Final = 512 * 1024 * 1024  # bytes: RabbitMQ cannot be configured to accept more
_TOO_LARGE: Final = re.compile(r"message size (?P<size>\d+) is larger than .*size (?P<limit>\d+)")
_TIMEOUTS: Final = {"read_timeout": 10, "write_timeout": 10}

_HINTS: Final[dict[type[Exception], str]] = {
    amqp.AccessRefused: "Correct user and password in CELERY_BROKER_URL, or grant the permission: "
    "rabbitmqctl set_permissions <user> '.*' '.*' '.*'",
    amqp.NotAllowed: "Correct the virtual host in CELERY_BROKER_URL, or create it: rabbitmqctl add_vhost <name>",
    amqp.PreconditionFailed: "Correct task_queues of celeryconfig.py: "
    "RabbitMQ does not create such a queue or exchange.",
}
_OPTION_HINT: Final = "Correct the options of the message in task_routes of celeryconfig.py."


# `Route.sent_as`, the partition of a task with a key, and whether the transaction has a context
_SentAs = tuple[tuple[Any, ...], str | None, bool]


class UnroutableError(BrokerError):
    """The broker has no queue for some tasks."""

    def __init__(self, message: str, *, ids: Collection[str], hint: str) -> None:
        super().__init__(message, hint=hint, code="no_queue")
        self.ids = ids  # of the tasks


class Delivery:
    """A batch's tasks being sent, each under its number in the batch."""

    def __init__(self, tasks: Sequence[Call]) -> None:
        self.outstanding: dict[int, Call] = dict(enumerate(tasks))  # not confirmed by the broker
        self.unsent = deque(self.outstanding)  # of these, on the open connection
        self.is_fresh = False  # the connection was opened for it

    def begin_again(self) -> None:
        """Note that the connection is lost: all outstanding tasks have to be sent again."""
        self.unsent = deque(self.outstanding)
        self.is_fresh = False

    def remove(self, belongs: Callable[[Call], bool]) -> list[Call]:
        """Remove some of the tasks, and return them."""
        found = {number: task for number, task in self.outstanding.items() if belongs(task)}
        for number in found:
            del self.outstanding[number]
        self.unsent = deque(self.outstanding)
        return list(found.values())

    def settle(self, confirms: Confirms) -> None:
        """Remove what the broker has confirmed."""
        for number in confirms.take():
            if not confirms.returned or self.outstanding[number].id not in confirms.returned:
                del self.outstanding[number]


class KombuSender:
    """One connection and channel; any failure closes them."""

    def __init__(self, app: Celery, retry: Retry, spans: Spans | None = None) -> None:
        self._app = app
        self._spans = spans
        self._retry = retry
        self._connection: Any = None
        self._channel: Any = None
        self._confirms = Confirms()
        self._templates: dict[_SentAs, MessageTemplate] = {}
        self._frames: dict[_SentAs, Frames] = {}  # on this connection
        self._renders: dict[tuple[_SentAs, Kind], Render] = {}  # the same
        # On this connection: places whose queues are declared, and whether they are bound to those for delays.
        self._declared: set[tuple[str | None, bool]] = set()
        self._queues: dict[str, None] = {}  # declared on any connection
        self._is_blocked = False
        self._write_timeout: float = _TIMEOUTS["write_timeout"]  # seconds, of this connection
        self._ticked_at = 0.0
        self.limit: int | None = None  # bytes in a body, from a refusal

    def start(self, delivery: Delivery) -> None:
        """Send as many of these tasks, in order, as the broker accepts immediately.

        Waits only for the network, and for the end of an alarm that begins in the middle of a message. Raises
        what `finish` raises.
        """
        with self._on_connection(delivery):
            self._send(delivery, waiting=False)

    def finish(self, delivery: Delivery) -> None:
        """Send the rest, and wait until the broker has confirmed all.

        Raise BrokerAwayError, MessageTooLargeError if some have more bytes than its limit, BrokerError, and
        StoppedError while it waits. What is not confirmed is then still outstanding: call it again.
        """
        with self._on_connection(delivery):
            self._send(delivery, waiting=True)
            self._wait_for_confirms()
        try:
            self._check_refusals(delivery)
        except BaseException:
            self._give_up(delivery)
            raise

    @contextmanager
    def _on_connection(self, delivery: Delivery) -> Iterator[None]:
        """Connect if necessary; at the end handle confirmed tasks, and after an error close the connection."""
        try:
            with self._translated():
                delivery.is_fresh |= self._open()
                try:
                    yield
                finally:
                    delivery.settle(self._confirms)
        except BaseException:
            self._give_up(delivery)
            raise

    def _give_up(self, delivery: Delivery) -> None:
        self._abandon()
        delivery.begin_again()

    def body_size(self, task: Call) -> int:
        """Return the size of the message's body in bytes."""
        return len(self._template(task).body(task))

    def keep_alive(self) -> None:
        """Send a heartbeat, if one is due; call it when there is nothing to send."""
        if self._connection is None or monotonic() - self._ticked_at < _TICK:
            return
        try:
            with self._translated():
                self._drain(0)
        except (BrokerAwayError, BrokerError):
            self._abandon()  # the next message opens a new connection, and reports it

    def lengths(self) -> dict[str, int]:
        """Return the number of waiting messages in each queue that we sent to."""
        try:
            with self._translated():
                self._open()
                return {queue: self._length(queue) for queue in list(self._queues)}
        except BaseException:
            self._abandon()
            raise

    def queue_of(self, task: Call) -> str:
        """Return the name of the task's queue, "" if Celery does not name it."""
        queue = self._template(task).queue
        return "" if queue is None else str(queue.name)

    def check_place(self, task: Call) -> None:
        """Raise EnvelopeError if the broker refuses the queue or the exchange that the task names.

        A refusal in the middle of a batch would close the connection. Raise BrokerAwayError.
        """
        template = self._template(task)
        if not self._is_amqp or self._sent_as(task) in self._frames:
            return
        try:
            with self._translated():
                self._open()
                self._try_place(task, template)
        except BaseException:
            self._abandon()
            raise

    def _try_place(self, task: Call, template: MessageTemplate) -> None:
        connection, queue, exchange = self._channel.connection, template.queue, template.exchange
        try:
            if queue is not None and existing_queue(connection, queue.name) is None:
                with throw_away_channel(connection) as channel:
                    queue(channel).declare()
            if exchange and not template.is_delayed and not exists_exchange(connection, exchange):
                raise _refused(task, f"there is no exchange {exchange!r}")
        except amqp.ChannelError as error:
            raise _refused(task, str(error)) from error

    def _length(self, queue: str) -> int:
        try:
            return int(self._channel.queue_declare(queue=queue, passive=True).message_count)
        except amqp.ChannelError:
            del self._queues[queue]  # it no longer exists: the next message for it declares it again
            raise

    def close(self) -> None:
        """Close the connection in the protocol's order; safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
        self._abandon()

    def _abandon(self) -> None:
        """Drop the connection without the protocol's close: the broker may not answer."""
        connection, self._connection = self._connection, None
        self._channel = None
        self._declared.clear()
        self._frames.clear()
        self._renders.clear()
        self._is_blocked = False
        if connection is not None:
            connection.collect()

    @cached_property
    def _is_amqp(self) -> bool:
        with self._app.connection_for_write() as connection:
            return bool(connection.transport.driver_type == "amqp")

    def _open(self) -> bool:
        """Connect if necessary; return whether the connection is new."""
        if self._connection is not None:
            return False
        options = self._options()
        connection = self._app.connection_for_write(
            heartbeat=self._app.conf.broker_heartbeat or _HEARTBEAT, transport_options=options
        )
        self._connection = connection
        self._write_timeout = options.get("write_timeout") or _TIMEOUTS["write_timeout"]
        connection.ensure_connection(
            max_retries=len(connection.alt) or 1,
            interval_start=0,
            interval_max=0,
            reraise_as_library_errors=False,
        )
        self._channel = connection.channel()
        self._confirms = Confirms()
        if self._is_amqp:
            self._confirms.watch(self._channel)
        return True

    def _options(self) -> dict[str, Any]:
        """Return transport options for waiting for confirms ourselves: once per batch, not once per message."""
        options = dict(self._app.conf.broker_transport_options or {})
        if not self._is_amqp:
            return options
        ours = {"confirm_publish": False, "on_blocked": self._on_blocked, "on_unblocked": self._on_unblocked}
        timeouts = {**_TIMEOUTS, "socket_settings": socket_settings(_TIMEOUTS["write_timeout"])}
        return {**timeouts, **options, **ours}

    def _send(self, delivery: Delivery, *, waiting: bool) -> None:
        """Send what is unsent; without `waiting`, stop before having to wait for the broker."""
        send = self._send_frames if self._is_amqp else self._send_through_kombu
        while delivery.unsent and not (self._is_blocked and not waiting):
            if self._is_blocked:  # data sent now would wait in a buffer, and be sent again after a timeout
                self._wait()
            elif not send(delivery):
                if not waiting:
                    return
                self._wait_for_confirms()

    def _send_through_kombu(self, delivery: Delivery) -> bool:
        """Send the next message to a broker that has no confirms."""
        number = delivery.unsent[0]
        task = delivery.outstanding[number]
        template = self._template(task)
        self._declare(template)
        trace = {} if self._spans is None else self._spans.headers(task.change)
        template.publish(Producer(self._channel, auto_declare=False), task, trace)
        self._confirms.sent(delivery.unsent.popleft())
        self._confirms.on_ack(self._confirms.last, multiple=False)
        return True

    def _send_frames(self, delivery: Delivery) -> bool:
        """Send the next messages, many at a time; return False if others have to be confirmed first."""
        frames = self._next_frames(delivery)
        if frames:
            connection = self._channel.connection
            write_frames(
                connection,
                b"".join(frames),
                timeout=self._write_timeout,
                is_blocked=lambda: self._is_blocked,
                check=self._retry.check,
            )
            connection.bytes_sent += 1  # py-amqp counts frames, to see whether a heartbeat is due
            while self._drain(0):
                pass
        return bool(frames)

    def _next_frames(self, delivery: Delivery) -> list[bytes]:
        unsent, outstanding, sent = delivery.unsent, delivery.outstanding, self._confirms.sent
        large = min(_LARGE, self.limit or _LARGE)
        frames: list[bytes] = []
        size = 0
        while unsent and size < _AT_ONCE:
            task = outstanding[unsent[0]]
            message = self._render(task)(task)
            if len(message) >= large and self._confirms.is_waiting:
                break  # a refusal closes the channel, and loses messages in flight
            sent(unsent.popleft())
            frames.append(message)
            size += len(message)
        return frames

    def _render(self, task: Call) -> Render:
        key = self._sent_as(task), task.change.kind
        try:
            return self._renders[key]
        except KeyError:
            if len(self._renders) >= _MOST_REMEMBERED:
                self._renders.clear()
            return self._renders.setdefault(key, self._frames_of(task).of(task.change.kind))

    def _frames_of(self, task: Call) -> Frames:
        key = self._sent_as(task)
        if key not in self._frames:
            if len(self._frames) >= _MOST_REMEMBERED:
                self._frames.clear()
            template = self._template(task)
            self._declare(template)
            self._frames[key] = Frames(self._channel, template, task.route, self._spans)
        return self._frames[key]

    def _template(self, task: Call) -> MessageTemplate:
        key = self._sent_as(task)
        if key not in self._templates:
            if len(self._templates) >= _MOST_REMEMBERED:  # each enqueued task may have its own time
                self._templates.clear()
            _, partition, has_context = key
            self._templates[key] = message_template(
                self._app,
                task.route,
                partition=partitions_of(self._app)[partition] if partition and self._is_amqp else None,
                has_key=task.key is not None,
                has_context=has_context,
            )
        return self._templates[key]

    def _sent_as(self, task: Call) -> _SentAs:
        """Return the common part of tasks with similar messages."""
        key, has_context = task.key, task.change.commit.context is not None
        if key is None:
            return task.route.sent_as, None, has_context
        partition = partition_of(self._partitions, task.route, key) if self._is_amqp else ""
        return task.route.sent_as, partition, has_context

    @cached_property
    def _partitions(self) -> list[str]:
        return list(partitions_of(self._app))

    def _declare(self, message: MessageTemplate) -> None:
        """Declare the message's queue once per connection; all queues if Celery does not name it."""
        place = message.queue.name if message.queue else None, message.is_delayed
        if place not in self._declared:
            queues = [message.queue] if message.queue else durable_queues(self._app)
            for queue in queues:
                self._create(queue)
                self._queues[queue.name] = None
            if message.is_delayed:
                bind_to_delays(self._app, self._channel.connection, queues)
            self._declared.add(place)

    def _create(self, queue: Queue) -> None:
        """Create the queue. If it exists, use it as it is, and bind it if necessary."""
        if not self._is_amqp or existing_queue(self._channel.connection, queue.name) is None:
            queue(self._channel).declare()
        elif queue.exchange.name and not getattr(queue, "no_declare", False):
            connection = self._channel.connection
            if not exists_exchange(connection, queue.exchange.name):
                queue.exchange(self._channel).declare()
            bind_if_allowed(
                connection,
                queue=queue.name,
                exchange=queue.exchange.name,
                routing_key=queue.routing_key,
                arguments=queue.binding_arguments,
            )

    def _wait_for_confirms(self) -> None:
        """Wait until each message is confirmed or refused."""
        give_up_at = monotonic() + _CONFIRM_TIMEOUT
        while self._confirms.is_waiting:
            if self._wait() or self._is_blocked:
                give_up_at = monotonic() + _CONFIRM_TIMEOUT
            elif monotonic() > give_up_at:  # a quorum queue that has just started misses some
                raise BrokerAwayError(f"RabbitMQ confirmed nothing for {_CONFIRM_TIMEOUT:.0f} seconds.")

    def _check_refusals(self, delivery: Delivery) -> None:
        confirms = self._confirms
        if confirms.returned:
            task_id, reason = next(iter(confirms.returned.items()))
            if delivery.is_fresh:
                task = next(each.route.task for each in delivery.outstanding.values() if each.id == task_id)
                raise UnroutableError(
                    f"The task {task} would go to no queue: {reason}.",
                    ids=set(confirms.returned),
                    hint="Correct task_routes or task_queues in celeryconfig.py.",
                )
            raise BrokerAwayError(f"A queue no longer exists: {reason}")  # a new connection declares it again
        if confirms.refused:
            raise BrokerAwayError("RabbitMQ refuses messages: a queue is full, or has lost its majority.")

    def _wait(self) -> bool:
        """Wait briefly for the broker; return whether it sent something. If not, raise StoppedError after `stop`."""
        heard = self._drain(_TICK)
        if not heard:
            self._retry.check()
        return heard

    def _drain(self, seconds: float) -> bool:
        """Handle what the broker sends; return whether it sent something."""
        heard = True
        if self._is_amqp:
            # Not through kombu's connection, which would reconnect without logging it.
            transport, connection = self._connection.transport, self._channel.connection
            try:
                transport.drain_events(connection, timeout=seconds)
            except TimeoutError:
                heard = False
            transport.heartbeat_check(connection)
        self._ticked_at = monotonic()
        return heard

    def _on_blocked(self, reason: str) -> None:
        self._is_blocked = True
        wait_without_limit(self._channel.connection, self._write_timeout, on=True)
        log.warning("waiting", what="broker", error=f"RabbitMQ accepts no messages: {reason}")

    def _on_unblocked(self) -> None:
        self._is_blocked = False
        wait_without_limit(self._channel.connection, self._write_timeout, on=False)
        log.info("back", what="broker")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise BrokerAwayError for temporary errors, BrokerError for those that a person has to fix."""
        broker: Any = (
            self._app.connection_for_write()
        )  # not connected: it only has the transport's error classes
        passing = (*broker.connection_errors, *broker.channel_errors, OperationalError)
        try:
            yield
        except tuple(_HINTS) as error:
            if found := _TOO_LARGE.search(str(error)):
                self.limit = int(found["limit"])
                raise _too_large(int(found["size"]), self.limit) from error
            hint = next(hint for kind, hint in _HINTS.items() if isinstance(error, kind))
            hint = hint.replace("CELERY_BROKER_URL", address_of(self._app))
            if isinstance(error, amqp.PreconditionFailed) and error.method_sig == spec.Basic.Publish:
                hint = _OPTION_HINT
            raise BrokerError(f"The broker refuses us: {error}.", hint=hint, code=_code(error)) from error
        except ImportError as error:
            raise BrokerError(
                f"Celery's transport for {address_of(self._app)} is not installed: {error}.",
                code="transport_not_installed",
            ) from error
        except passing as error:
            if certificate := bad_certificate(error):
                raise BrokerError(
                    f"The broker's certificate is not valid: {certificate.verify_message}.",
                    hint=f"Correct the host in {address_of(self._app)}, "
                    "or ca_certs in broker_use_ssl of celeryconfig.py.",
                    code="certificate",
                ) from error
            raise BrokerAwayError(f"{type(error).__name__}: {error}") from error


def _refused(task: Call, reason: str) -> EnvelopeError:
    return EnvelopeError(
        f"RabbitMQ has no queue for the task {task.route.task}: {reason}.",
        hint="Correct its queue=, exchange= and routing_key=, or allow the listener's user to create the queue.",
        code="no_queue",
    )


def _code(error: Exception) -> str:
    if isinstance(error, amqp.AccessRefused | amqp.NotAllowed):
        return "broker_access_refused"
    return "queue_refused"


def _too_large(size: int, limit: int) -> MessageTooLargeError:
    hint = "Send fewer columns: columns= of the route."
    if size <= _LARGEST:
        hint = (
            "Send fewer columns (columns= of the route), or allow it in rabbitmq.conf and restart RabbitMQ: "
            f"max_message_size = {min(2 * size, _LARGEST)}"
        )
    return MessageTooLargeError(
        f"A message of {size} bytes is too large for RabbitMQ; its limit is {limit}.", limit=limit, hint=hint
    )
