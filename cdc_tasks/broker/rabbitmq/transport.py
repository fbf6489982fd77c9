"""kombu's RabbitMQ transport, in which every wait has an end, and an alarm of the broker stops no worker.

kombu waits for a confirmation forever, and each heartbeat restarts its time-outs. The wait is in the worker's event
loop, so a worker whose broker does not answer stands still.

RabbitMQ stops reading from a connection that publishes while its memory or disk alarm is on. Consuming goes on, on a
connection that never publishes: a worker's events, replies and tasks go out on others.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from shlex import quote
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

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

_CONFIRMED_WITHIN: Final = 3.0  # seconds; RabbitMQ has written a message to disk long before that
_ANSWERED_WITHIN: Final = 10.0  # seconds; a new quorum queue takes the longest
_CLOSED_WITHIN: Final = 1.0  # seconds; the connection is let go of all the same

after_unblocked: list[Callable[[], None]] = []  # called when a connection of this process may publish again


class _Waiting:
    """What waits for an answer of RabbitMQ's: a connection or a channel."""

    connection: Any  # the stubs leave out most of py-amqp

    def wait(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Return the answer; raises TimeoutError, for kombu an error of the connection, which it makes anew."""
        connection = self.connection
        if connection is None:  # closed meanwhile: py-amqp says so
            return super().wait(*args, timeout=timeout, **kwargs)  # type: ignore[misc]  # py-amqp's AbstractChannel
        with connection.answered_within(timeout or _ANSWERED_WITHIN):
            return super().wait(*args, timeout=timeout, **kwargs)  # type: ignore[misc]  # the same


class _Channel(_Waiting, pyamqp.Channel):
    _basic_publish: Any  # the stubs leave them out
    _confirm_selected: bool
    events: Any

    _sent = 0  # number of the message that was sent last, since confirms were selected

    def basic_publish_confirm(self, msg: Any, *args: Any, **options: Any) -> None:
        """Publish, and wait until RabbitMQ has confirmed it, unless it is for people who watch.

        Raises BrokerBlockedError, UnroutableError where `mandatory` is among the options and no queue is bound, and
        TimeoutError, for kombu an error of the connection.
        """
        confirmed_within = options.pop("confirm_timeout", None) or _CONFIRMED_WITHIN
        is_for_watchers = _is_for_watchers(options.get("exchange", ""))
        if self.connection.has_been_blocked():
            if is_for_watchers:
                return  # nobody would see it before it is old
            raise BrokerBlockedError
        if is_for_watchers and not self._confirm_selected:
            self._basic_publish(msg, *args, **options)
            return
        self._select_confirms()
        self._sent += 1
        self._unconfirmed.add(number := self._sent)
        self._returned: str | None = None
        self._basic_publish(msg, *args, **options)
        if not is_for_watchers:
            self._wait_for_confirm(number, monotonic() + confirmed_within)

    def queue_declare(self, queue: str = "", *args: Any, **options: Any) -> Any:
        """Make a queue, unless it exists: then it is taken as it is. kombu passes options by name."""
        if queue and not options.get("passive") and not options.get("exclusive"):
            found = existing_queue(self.connection, queue)
            if found is not None:
                return found
        return super().queue_declare(queue, *args, **options)

    def exchange_declare(self, exchange: str, *args: Any, **options: Any) -> Any:
        """Make an exchange, unless it exists: then it is taken as it is."""
        if not options.get("passive") and exists_exchange(self.connection, exchange):
            return None
        return super().exchange_declare(exchange, *args, **options)

    def queue_bind(self, queue: str, *args: Any, **options: Any) -> Any:
        """Bind a queue; where we have no right to, it is taken to be bound."""
        if not bind_if_allowed(self.connection, queue, *args, **options):
            log.info("binding_not_made", queue=queue, reason="The user has no right to.")

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Say goodbye, unless nobody listens."""
        connection = self.connection
        if connection is not None and connection.is_blocked:
            self.collect()
        elif connection is not None:
            with connection.answered_within(_CLOSED_WITHIN):
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
            if (
                self.connection.is_blocked
            ):  # it may be published once the alarm is over, with the id that it has
                raise BrokerBlockedError
            self.connection.drain_events(timeout=max(0.0, deadline - monotonic()))
        if number in self._refused:
            self._refused.discard(number)
            raise MessageNacked
        if self._returned is not None:  # it came before the confirmation
            where = quote(self.connection.virtual_host)
            raise UnroutableError(
                f"RabbitMQ has no queue for {self._returned}.", hint=f"rabbitmqctl list_bindings -p {where}"
            )

    def _note_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001  # py-amqp calls it so
        self._unconfirmed -= self._settled(number, multiple=multiple)

    def _note_nack(self, number: int, multiple: bool) -> None:  # noqa: FBT001  # the same
        self._refused |= self._settled(number, multiple=multiple)
        self._unconfirmed -= self._refused

    def _note_return(self, _error: Any, exchange: str, routing_key: str, _message: Any) -> None:
        self._returned = f"a message to the exchange {exchange!r} with the routing key {routing_key!r}"

    def _settled(self, number: int, *, multiple: bool) -> set[int]:
        return {each for each in self._unconfirmed if each <= number} if multiple else {number}


def _is_for_watchers(exchange: str) -> bool:
    """Return whether messages to this exchange are events, remote control or its replies: no task is lost with them."""
    return exchange.endswith(".pidbox") or exchange == current_app.conf.event_exchange


class _Connection(_Waiting, pyamqp.Connection):
    Channel = _Channel

    blocking_read: Any  # the stubs leave them out
    on_blocked: Any
    on_unblocked: Any

    is_blocked = False
    answer_by: float | None = None  # when whoever waits for an answer gives up

    def drain_events(self, timeout: float | None = None) -> None:
        """Read one method; raises TimeoutError when `timeout` seconds have passed, heartbeats or not."""
        now = monotonic()
        ends = [
            end for end in (self.answer_by, None if timeout is None else now + timeout) if end is not None
        ]
        if not ends:
            super().drain_events()
            return
        done = False
        while not done:
            if (
                self.is_blocked and self.answer_by is not None
            ):  # a new connection is answered, until it publishes
                raise TimeoutError("RabbitMQ does not read from this connection: its alarm is on.")
            done = self.blocking_read(max(0.0, min(ends) - monotonic()))

    def has_been_blocked(self) -> bool:
        """Return whether RabbitMQ has told this connection that it does not read from it."""
        with suppress(TimeoutError):
            while True:
                self.drain_events(timeout=0)
        return self.is_blocked

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Say goodbye, unless nobody listens."""
        if self.is_blocked:
            self.collect()
            return
        with self.answered_within(_CLOSED_WITHIN):
            super().close(*args, **kwargs)

    @contextmanager
    def answered_within(self, seconds: float) -> Iterator[None]:
        """Give up waiting for answers after so many seconds, or earlier where somebody further out says so."""
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


class Transport(pyamqp.Transport):
    """In the place of kombu's `amqp://` and `pyamqp://`."""

    Connection = _Connection


class SSLTransport(pyamqp.SSLTransport):
    """In the place of kombu's `amqps://`."""

    Connection = _Connection
