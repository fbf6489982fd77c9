"""Wake-up: how an idle worker is notified that one of its queues has a message.

The script that takes a message cannot wait, and no command of Redis waits for several lists without taking from them.
So an idle worker waits at each of its queues on a separate connection, with BRPOPLPUSH. That command moves the message
into an inbox and answers. Redis serves waiting clients in their order, so one message wakes one worker. The script
takes from the inboxes first. The messages in an inbox are unacknowledged: if the worker dies, they go back to their
queue (`unacknowledged.py`), and a worker that is full by then gives the message back.

BRPOPLPUSH exists since Redis 2.2; BLMOVE, its successor, only since 6.2.

Every few seconds a worker also looks at all its lists. kombu keeps messages with a priority in separate lists, at which
no worker waits. A queue that may be slow has no connection to wait on either (NO_WAKE_UP).
"""

from __future__ import annotations

from functools import partial
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from redis.exceptions import OutOfMemoryError

from cdc_tasks.broker.redis import silent_connections
from cdc_tasks.broker.redis.older_kombu import PollerParts, is_readable
from cdc_tasks.broker.redis.unacknowledged import LEASES, inbox_key, inbox_lease

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NO_WAKE_UP", "Poller", "WakeUps"]

NO_WAKE_UP: Final = "x-cdc-no-wake-up"  # an argument of a consumer: its queue needs no wait, only the looks
_MAX_WAIT: Final = 30  # seconds until a wait ends without a message
_REST: Final = 3  # seconds until the next wait after Redis has refused a write
_LOOK_EVERY: Final = 3.0  # seconds between two looks of an idle worker at all its queues
_LOOK_EVERY_WITH_PRIORITIES: Final = 1.0
_EXPECTED_FOR: Final = 60.0  # seconds in which more messages with a priority are expected after one
_KIND: Final = "wake-up "  # the poller's prefix for these connections

logger = get_logger(__name__)


def seconds_to_wait(lease: float) -> int:
    """Return how long to wait at a queue, in whole seconds, as Redis before version 6 needs it.

    The inbox's lease is renewed right before a wait, and lasts twice as long. So no message arrives in an inbox whose
    lease other workers have deleted.
    """
    return max(1, min(int(lease / 2), _MAX_WAIT))


class WakeUps:
    """The connections on which one channel waits, opened at its first wait. Only the channel's thread uses them."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._clients: dict[str, Any] = {}  # queue: kombu's client, with a connection
        self.inboxes: set[str] = set()  # queues at which it has waited: a message may still arrive there
        self._waiting: dict[str, float] = {}  # queue: since when
        self._renewing: set[str] = set()  # queues whose lease was renewed; the answer to that is not read yet
        self._omitted: set[str] = set()  # queues at which it does not wait
        self._rests_until = float("-inf")
        self._looked_at = float("-inf")
        self._expects_priorities_until = float("-inf")

    def omit(self, queue: str) -> None:
        """Do not wait at this queue: the next look finds its messages."""
        self._omitted.add(queue)

    def expect_priorities(self) -> None:
        """Look more often for a while: a message with a priority has arrived, and more may follow."""
        self._expects_priorities_until = monotonic() + _EXPECTED_FOR

    def is_time_to_look(self) -> bool:
        """Return whether a look at all queues is due; if so, count it as done."""
        now = monotonic()
        every = _LOOK_EVERY_WITH_PRIORITIES if now < self._expects_priorities_until else _LOOK_EVERY
        if now - self._looked_at < every:
            return False
        self._looked_at = now
        return True

    def wait_at(self, queues: Iterable[str]) -> None:
        """Start a wait at each of these queues that has none; raise the connection's errors."""
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
        self._renewing.add(queue)
        self._waiting[queue] = monotonic()

    def _answered(self, queue: str) -> None:
        """Read the answer, and raise Empty: for kombu, no message came with it."""
        if queue not in self._clients:  # `leave` was called meanwhile
            raise Empty
        connection = self._clients[queue].connection
        if queue in self._renewing:
            self._renewing.discard(queue)
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
        except OutOfMemoryError:  # BRPOPLPUSH counts as a write; the script that takes a message is allowed
            self._rests_until = monotonic() + _REST
            return None
        except self._channel.connection_errors:
            connection.disconnect()
            raise

    def leave(self, queue: str) -> None:
        """Stop waiting at this queue; a message that arrived goes back now or when the inbox's lease expires."""
        if (client := self._clients.pop(queue, None)) is not None:
            _disconnect(client)
            self._waiting.pop(queue, None)
            self._renewing.discard(queue)
            try:
                self._channel.qos.empty_inbox(queue)
            except self._channel.connection_errors:
                logger.debug("an inbox could not be emptied", exc_info=True)

    def forget(self, connection: Any) -> None:
        """Remove the wait on a closed connection."""
        for queue, client in self._clients.items():
            if client.connection is connection:
                self._waiting.pop(queue, None)
                self._renewing.discard(queue)

    def check(self, timeout: float) -> None:
        """Reconnect all channels if an answer is overdue by `timeout` seconds."""
        longest = self._wait + timeout
        overdue = [queue for queue, since in self._waiting.items() if monotonic() - since > longest]
        if any(not is_readable(self._clients[queue].connection) for queue in overdue):
            logger.warning("Redis has not answered for %.0f seconds; the worker reconnects", longest)
            silent_connections.reconnect_all()

    @property
    def _wait(self) -> int:
        return seconds_to_wait(self._channel.visibility_timeout)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            _disconnect(client)
        self._clients.clear()
        self._waiting.clear()
        self._renewing.clear()


def _disconnect(client: Any) -> None:
    if client.connection is not None:
        client.connection.disconnect()


class Poller(kombu_redis.MultiChannelPoller, PollerParts):
    """kombu's poller, which also watches the connections for wake-ups."""

    _channels: Any
    _fd_to_chan: Any

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind.startswith(_KIND):  # also if the worker is full: a wake-up delivers no message
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def on_poll_start(self) -> None:
        for channel in self._channels:
            channel.reconnect_if_told()
        super().on_poll_start()
        for channel in self._channels:
            channel.acknowledge_rest()

    def maybe_check_brpop_health(self) -> None:
        looking = [(channel, channel._in_poll) for channel in self._channels if channel._in_poll]  # noqa: SLF001  # the same
        super().maybe_check_brpop_health()
        if any(channel._in_poll is not connection for channel, connection in looking):  # noqa: SLF001  # the same
            silent_connections.reconnect_all()  # kombu has closed it, since an answer is overdue
        for channel in self._channels:
            if channel.health_check_interval:
                channel.wake_ups.check(channel.health_check_interval)
