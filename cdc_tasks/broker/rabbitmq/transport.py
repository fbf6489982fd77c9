"""kombu's RabbitMQ transport with a time-out for every wait; an alarm of the broker does not stop a worker.

kombu waits for a confirm forever, and each heartbeat restarts its time-outs. It waits in the worker's event loop, so a
worker hangs if its broker does not answer.

At start-up a worker waits for about a hundred answers on one connection, while its other connections are silent. If
that takes longer than two heartbeats, RabbitMQ closes these, and the worker starts again. So each wait sends the
heartbeats of all connections of its thread.

While RabbitMQ's memory or disk alarm is on, it does not read from connections that publish. A connection that never
publishes continues to consume: a worker publishes its events, replies and tasks on other connections.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from shlex import quote
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import structlog
from amqp.exceptions import MessageNacked
from celery import current_app
from kombu.transport import pyamqp

from cdc_tasks.broker.rabbitmq.queues import bind_if_allowed, existing_queue, exists_exchange
from cdc_tasks.retry import BrokerBlockedError, UnroutableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SSLTransport", "Transport", "after_unblocked"]

log = structlog.get_logger()

_CONFIRM_TIMEOUT: Final = 3.0  # seconds; RabbitMQ writes a message to disk much faster
_ANSWER_TIMEOUT: Final = 10.0  # seconds; a new quorum queue takes the longest
_CLOSE_TIMEOUT: Final = 1.0  # seconds; then the connection is dropped anyway
_BEAT: Final = 0.5  # seconds of a wait after which heartbeats are checked

_connections: WeakSet[_Connection] = WeakSet()  # all opened ones, also before a fork

after_unblocked: list[Callable[[], None]] = []  # called when a connection of this process may publish again


class _Waiting:
    """A connection or a channel with a time-out when it waits for an answer."""

    connection: Any  # the stubs leave out most of py-amqp

    def wait(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Return the answer; raise TimeoutError, a connection error for kombu, which then reconnects."""
        connection = self.connection
        if connection is None:  # it was closed meanwhile: py-amqp raises its own error
            return super().wait(*args, timeout=timeout, **kwargs)  # type: ignore[misc]  # py-amqp's AbstractChannel
        with connection.answered_within(timeout or _ANSWER_TIMEOUT):
            return super().wait(*args, timeout=timeout, **kwargs)  # type: ignore[misc]  # the same


class _Channel(_Waiting, pyamqp.Channel):
    _basic_publish: Any  # the stubs leave them out
    _confirm_selected: bool
    events: Any

    listener: Any = (
        None  # is called before messages are acknowledged, and may postpone that (`keyed_messages.py`)
    )
    is_closed_alone = False  # its connection continues without it
    _sent = 0  # number of the last sent message since confirms were selected

    def basic_publish_confirm(self, msg: Any, *args: Any, **options: Any) -> None:
        """Publish, and wait for the confirm, unless it is an event or remote control.

        Raise BrokerBlockedError while an alarm is on, UnroutableError if the message is `mandatory` and no queue is
        bound, and TimeoutError, which is a connection error for kombu.
        """
        confirmed_within = options.pop("confirm_timeout", None) or _CONFIRM_TIMEOUT
        is_monitoring = _is_monitoring(options.get("exchange", ""))
        if self.connection.has_been_blocked():
            if is_monitoring:
                return  # it would be outdated before anyone saw it
            raise BrokerBlockedError
        if is_monitoring and not self._confirm_selected:
            self._basic_publish(msg, *args, **options)
            return
        self._select_confirms()
        self._sent += 1
        self._unconfirmed.add(number := self._sent)
        self._returned: str | None = None
        self._basic_publish(msg, *args, **options)
        if not is_monitoring:
            self._wait_for_confirm(number, monotonic() + confirmed_within)

    def basic_ack(self, delivery_tag: Any, *args: Any, **options: Any) -> None:
        """Acknowledge a message."""
        listener = self.listener
        if listener is None:
            super().basic_ack(delivery_tag, *args, **options)
        elif listener.before_ack(delivery_tag):
            super().basic_ack(delivery_tag, *args, **options)
            listener.after_ack(delivery_tag)

    def basic_reject(self, delivery_tag: Any, requeue: bool, *args: Any, **options: Any) -> None:  # noqa: FBT001  # py-amqp's signature
        """Give a message back to its queue, or drop it."""
        listener = self.listener
        if listener is not None and not requeue:
            self.basic_ack(delivery_tag)
            return
        super().basic_reject(delivery_tag, requeue, *args, **options)
        if listener is not None:
            listener.given_back(delivery_tag)

    def queue_declare(self, queue: str = "", *args: Any, **options: Any) -> Any:
        """Create a queue if it is missing; an existing one is used unchanged. kombu passes options by name."""
        if queue and not options.get("passive") and not options.get("exclusive"):
            found = existing_queue(self.connection, queue)
            if found is not None:
                return found
        return super().queue_declare(queue, *args, **options)

    def exchange_declare(self, exchange: str, *args: Any, **options: Any) -> Any:
        """Create an exchange if it is missing; an existing one is used unchanged."""
        if not options.get("passive") and exists_exchange(self.connection, exchange):
            return None
        return super().exchange_declare(exchange, *args, **options)

    def queue_bind(self, queue: str, *args: Any, **options: Any) -> Any:
        """Bind a queue; if the user lacks the permission, assume that it is bound."""
        if not bind_if_allowed(self.connection, queue, *args, **options):
            log.info("binding_not_made", queue=queue, reason="The user lacks the permission.")

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close in order, unless RabbitMQ does not read from this connection."""
        connection = self.connection
        if connection is not None and connection.is_blocked:
            self.collect()
        elif connection is not None:
            with connection.answered_within(_ANSWER_TIMEOUT if self.is_closed_alone else _CLOSE_TIMEOUT):
                super().close(*args, **kwargs)

    def _select_confirms(self) -> None:
        if self._confirm_selected:
            return
        self._confirm_selected = True
        self._sent, self._unconfirmed, self._refused = 0, set[int](), set[int]()
        self.confirm_select()
        self.events["basic_ack"].add(self._note_ack)
        self.events["basic_nack"].add(self._note_nack)
        self.events["basic_return"].add(self._note_return)

    def _wait_for_confirm(self, number: int, deadline: float) -> None:
        while number in self._unconfirmed:
            if self.connection.is_blocked:
                # RabbitMQ may still take the message when the alarm is over; a retry has the same task id.
                raise BrokerBlockedError
            self.connection.drain_events(timeout=max(0.0, deadline - monotonic()))
        if number in self._refused:
            self._refused.discard(number)
            raise MessageNacked
        if self._returned is not None:  # RabbitMQ returns a message before it confirms it
            where = quote(self.connection.virtual_host)
            raise UnroutableError(
                f"RabbitMQ has no queue for {self._returned}.", hint=f"rabbitmqctl list_bindings -p {where}"
            )

    def _note_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001  # py-amqp calls it so
        self._unconfirmed -= self._confirmed(number, multiple=multiple)

    def _note_nack(self, number: int, multiple: bool) -> None:  # noqa: FBT001  # the same
        self._refused |= self._confirmed(number, multiple=multiple)
        self._unconfirmed -= self._refused

    def _note_return(self, _error: Any, exchange: str, routing_key: str, _message: Any) -> None:
        self._returned = f"a message to the exchange {exchange!r} with the routing key {routing_key!r}"

    def _confirmed(self, number: int, *, multiple: bool) -> set[int]:
        return {each for each in self._unconfirmed if each <= number} if multiple else {number}


def _is_monitoring(exchange: str) -> bool:
    """Return whether an exchange is for events, remote control or its replies: no task is lost with these."""
    return exchange.endswith(".pidbox") or exchange == current_app.conf.event_exchange


class _Connection(_Waiting, pyamqp.Connection):
    Channel = _Channel

    blocking_read: Any  # the stubs leave them out
    send_heartbeat: Any
    on_blocked: Any
    on_unblocked: Any

    connected: bool
    heartbeat: int | None

    is_blocked = False
    answer_by: float | None = None  # the deadline of the current wait for an answer

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, and record which thread may write to this connection."""
        found = super().connect(*args, **kwargs)
        self._owner = os.getpid(), get_ident()
        self._beat_at = monotonic()
        _connections.add(self)
        return found

    def beat(self) -> None:
        """Send a heartbeat, if one is due, and if this thread may."""
        now = monotonic()
        is_ours = self._owner == (os.getpid(), get_ident()) and self.connected and not self.is_blocked
        if is_ours and self.heartbeat and now - self._beat_at >= self.heartbeat / 2:
            self._beat_at = now
            with suppress(OSError):  # the next user of the connection gets the error
                self.send_heartbeat()

    def drain_events(self, timeout: float | None = None) -> None:
        """Read one method; raise TimeoutError after `timeout` seconds, even if heartbeats arrive."""
        if self.answer_by is not None:  # messages may keep arriving until the answer does
            _send_heartbeats()
        now = monotonic()
        ends = [
            end for end in (self.answer_by, None if timeout is None else now + timeout) if end is not None
        ]
        if not ends:
            super().drain_events()
            return
        done = False
        while not done:
            # RabbitMQ answers a new connection until it publishes.
            if self.is_blocked and self.answer_by is not None:
                raise TimeoutError("RabbitMQ does not read from this connection: its alarm is on.")
            left = max(0.0, min(ends) - monotonic())
            try:
                done = self.blocking_read(min(left, _BEAT))
            except TimeoutError:
                if left <= _BEAT:
                    raise
            if not done:  # nothing came, or a heartbeat did
                _send_heartbeats()

    def has_been_blocked(self) -> bool:
        """Read what has arrived, and return whether RabbitMQ has blocked this connection."""
        with suppress(TimeoutError):
            while True:
                self.drain_events(timeout=0)
        return self.is_blocked

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close in order, unless RabbitMQ does not read from this connection."""
        if self.is_blocked:
            self.collect()
            return
        with self.answered_within(_CLOSE_TIMEOUT):
            super().close(*args, **kwargs)

    @contextmanager
    def answered_within(self, seconds: float) -> Iterator[None]:
        """Limit the waits for answers in this block to `seconds`, or to an enclosing block's deadline."""
        outer, end = self.answer_by, monotonic() + seconds
        self.answer_by = end if outer is None else min(outer, end)
        try:
            yield
        finally:
            self.answer_by = outer

    def _on_blocked(self) -> None:
        self.is_blocked = True
        if self.on_blocked is None:
            log.warning("broker_blocked", error=BrokerBlockedError().message)
        super()._on_blocked()  # type: ignore[misc]  # py-amqp's, not in the stubs

    def _on_unblocked(self) -> None:
        self.is_blocked = False
        if self.on_unblocked is None:
            log.info("broker_unblocked")
        super()._on_unblocked()  # type: ignore[misc]  # the same
        for act in after_unblocked:
            act()


def _send_heartbeats() -> None:
    """Send the heartbeats of all connections of this thread: it waits for an answer on one of them."""
    for each in tuple(_connections):
        each.beat()


class Transport(pyamqp.Transport):
    """Replaces kombu's transport for `amqp://` and `pyamqp://`."""

    Connection = _Connection


class SSLTransport(pyamqp.SSLTransport):
    """Replaces kombu's transport for `amqps://`."""

    Connection = _Connection
