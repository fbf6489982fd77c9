"""How an idle worker learns that there is a message, in whichever of its queues: a doorbell at each.

The script that takes a message cannot wait, and no command of Redis waits for several lists without taking from them.
So an idle worker waits at each of its queues on a connection of its own, with BRPOPLPUSH, which moves the message into
an inbox of its own lease and answers. Redis serves those that wait in their order, so that one message wakes one
worker. The script takes from the inboxes first. An inbox is a part of what a worker holds: that of a dead worker goes
back to its queue (`unacknowledged.py`), and a worker that has no room by then gives the message back.

BRPOPLPUSH has been there since Redis 2.2; BLMOVE, which is to replace it, only since 6.2.

Now and then a worker also looks at all its lists: kombu keeps messages with a priority in lists of their own, at which
nobody waits, and a queue for which nobody is in a hurry needs no connection to wait on.
"""

from __future__ import annotations

import select
from functools import partial
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from redis.exceptions import OutOfMemoryError

from cdc_tasks.broker.redis import silent_connections
from cdc_tasks.broker.redis.unacknowledged import LEASES, inbox_key, inbox_lease

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NO_WAKE_UP", "Poller", "WakeUps"]

NO_WAKE_UP: Final = "x-cdc-no-wake-up"  # an argument of a consumer that is content with the looks
_MAX_WAIT: Final = 30  # seconds after which a wait ends although nobody came
_REST: Final = 3  # seconds before it waits again at a Redis that takes no writes
_LOOK_EVERY: Final = 3.0  # seconds between two looks of an idle worker at all its queues
_LOOK_EVERY_WITH_PRIORITIES: Final = 1.0
_EXPECTED_FOR: Final = 60.0  # seconds in which more messages with a priority are expected after one
_KIND: Final = "wake-up "  # what the poller knows their connections by

logger = get_logger(__name__)


def seconds_to_wait(lease: float) -> int:
    """Return how long to wait at a queue: whole seconds, before Redis 6.

    The inbox's lease is renewed right before a wait, and lasts for twice as long. So no message comes into an inbox
    whose lease others have ended.
    """
    return max(1, min(int(lease / 2), _MAX_WAIT))


class WakeUps:
    """Those of one channel, made when it first waits; one thread has the channel, and these."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._clients: dict[str, Any] = {}  # queue: kombu's client, with a connection
        self.inboxes: set[str] = set()  # queues at which it waited: a message may be on its way there
        self._waiting: dict[str, float] = {}  # queue: since when
        self._announced: set[str] = (
            set()
        )  # queues whose lease was renewed, and nobody has read the answer to that
        self._omitted: set[str] = set()  # queues at which it does not wait
        self._rests_until = float("-inf")
        self._looked_at = float("-inf")
        self._expects_priorities_until = float("-inf")

    def omit(self, queue: str) -> None:
        """Do not wait at this queue: what comes is found by the next look."""
        self._omitted.add(queue)

    def expect_priorities(self) -> None:
        """Look more often for a while: a message with a priority came, and another may."""
        self._expects_priorities_until = monotonic() + _EXPECTED_FOR

    def is_time_to_look(self) -> bool:
        """Return whether the last look at all queues was a while ago, and take this one for it if so."""
        now = monotonic()
        every = _LOOK_EVERY_WITH_PRIORITIES if now < self._expects_priorities_until else _LOOK_EVERY
        if now - self._looked_at < every:
            return False
        self._looked_at = now
        return True

    def wait_at(self, queues: Iterable[str]) -> None:
        """Wait at each of these queues where it does not wait yet; raises the connection's errors."""
        if monotonic() < self._rests_until:
            return
        for queue in queues:
            if queue not in self._waiting and queue not in self._omitted:
                self._wait_at(queue)

    def _wait_at(self, queue: str) -> None:
        poller, kind = self._channel.connection.cycle, _KIND + queue
        if queue not in self._clients:
            self._clients[queue] = self._channel._create_client(asynchronous=True)  # noqa: SLF001  # as kombu's own two
            self._channel.handlers[kind] = partial(self._answered, queue)
        client = self._clients[queue]
        if not poller._client_registered(self._channel, client, kind):  # noqa: SLF001  # the same
            poller._register(self._channel, client, kind)  # noqa: SLF001  # the same
        lease, connection = self._channel.lease, client.connection
        leases, inbox, queue_key = (
            f"{self._channel.global_keyprefix}{key}" for key in (LEASES, inbox_key(lease, queue), queue)
        )
        renewal = ("HINCRBY", leases, inbox_lease(lease, queue), 1)
        wait = ("BRPOPLPUSH", queue_key, inbox, self._wait)
        connection.send_packed_command(connection.pack_commands([renewal, wait]))
        self.inboxes.add(queue)
        self._announced.add(queue)
        self._waiting[queue] = monotonic()

    def _answered(self, queue: str) -> None:
        """Read the answer; raises Empty, which tells kombu that no message came with it."""
        if queue not in self._clients:  # it was left a moment ago
            raise Empty
        connection = self._clients[queue].connection
        if queue in self._announced:
            self._announced.discard(queue)
            self._read(connection)
            if not connection.can_read(timeout=0):
                raise Empty
        came = self._read(connection) is not None
        self._waiting.pop(queue, None)
        if came and self._channel.qos.can_consume():
            self._channel.look_again()
        elif came:
            self._channel.qos.empty_inbox(queue)
        raise Empty

    def _read(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except OutOfMemoryError:  # it counts as writing; what takes a message is allowed, and makes room
            self._rests_until = monotonic() + _REST
            return None
        except self._channel.connection_errors:
            connection.disconnect()
            raise

    def leave(self, queue: str) -> None:
        """Wait at this queue no more; what came meanwhile goes back, or does when the inbox's lease has expired."""
        if (client := self._clients.pop(queue, None)) is not None:
            _disconnect(client)
            self._waiting.pop(queue, None)
            self._announced.discard(queue)
            try:
                self._channel.qos.empty_inbox(queue)
            except self._channel.connection_errors:
                logger.debug("an inbox could not be emptied", exc_info=True)

    def forget(self, connection: Any) -> None:
        """Take note that this connection is closed."""
        for queue, client in self._clients.items():
            if client.connection is connection:
                self._waiting.pop(queue, None)
                self._announced.discard(queue)

    def check(self, timeout: float) -> None:
        """Raise the alarm where an answer is so many seconds overdue."""
        longest = self._wait + timeout
        overdue = [queue for queue, since in self._waiting.items() if monotonic() - since > longest]
        if any(not _is_readable(self._clients[queue].connection) for queue in overdue):
            logger.warning("Redis has not answered for %.0f seconds; connecting anew", longest)
            silent_connections.reconnect_all()

    @property
    def _wait(self) -> int:
        return seconds_to_wait(self._channel.visibility_timeout)

    def close(self) -> None:
        """Close all of them."""
        for client in self._clients.values():
            _disconnect(client)
        self._clients.clear()
        self._waiting.clear()
        self._announced.clear()


def _disconnect(client: Any) -> None:
    if client.connection is not None:
        client.connection.disconnect()


def _is_readable(connection: Any) -> bool:
    """Return whether there is something to read, without reading it: the event loop is to see it."""
    if connection._sock is None:  # noqa: SLF001  # redis-py's `can_read` would read it
        return False
    watcher = select.poll()
    watcher.register(connection._sock, select.POLLIN)  # noqa: SLF001  # the same
    return bool(watcher.poll(0))


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's, which also watches for wake-ups."""

    _channels: Any
    _fd_to_chan: Any

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind.startswith(_KIND):  # also where there is no room for a message: it brings none
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def on_poll_start(self) -> None:
        for channel in self._channels:
            channel.reconnect_if_told()
        super().on_poll_start()

    def maybe_check_brpop_health(self) -> None:
        looking = [(channel, channel._in_poll) for channel in self._channels if channel._in_poll]  # noqa: SLF001  # the same
        super().maybe_check_brpop_health()  # type: ignore[misc]  # the same
        if any(channel._in_poll is not connection for channel, connection in looking):  # noqa: SLF001  # the same
            silent_connections.reconnect_all()  # kombu closed it, since an answer is overdue
        for channel in self._channels:
            if channel.health_check_interval:
                channel.wake_ups.check(channel.health_check_interval)
