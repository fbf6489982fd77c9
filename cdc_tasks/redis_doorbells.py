"""How an idle worker learns that there is a message, in whichever of its queues: a doorbell at each.

The script that takes a message cannot wait, and no command of Redis waits for several lists without taking from them.
So an idle worker waits at each of its queues on a connection of its own, with a command that leaves the message where
it is. When one answers, the script looks at all queues.
"""

from __future__ import annotations

from functools import partial
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from redis.exceptions import OutOfMemoryError

from cdc_tasks import redis_silence

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Doorbells", "Poller"]

# Seconds after which a doorbell answers although nobody came. Then the script looks as well, and so finds messages that
# have a priority: kombu keeps those in lists of their own.
_WAIT: Final = 1.0
_KIND: Final = "doorbell "  # what the poller knows their connections by

logger = get_logger(__name__)


class Doorbells:
    """Those of one channel, made when it first waits; one thread has the channel, and these."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._clients: dict[str, Any] = {}  # queue: kombu's client, with a connection
        self._waiting: dict[str, float] = {}  # queue: since when
        self._rests_until = float("-inf")

    def wait_at(self, queues: Iterable[str]) -> None:
        """Wait at each of these queues where it does not wait yet; raises the connection's errors."""
        if monotonic() < self._rests_until:
            return
        for queue in queues:
            if queue not in self._waiting:
                self._wait_at(queue)

    def _wait_at(self, queue: str) -> None:
        poller, kind = self._channel.connection.cycle, _KIND + queue
        if queue not in self._clients:
            self._clients[queue] = self._channel._create_client(asynchronous=True)  # noqa: SLF001  # as kombu's own two
            self._channel.handlers[kind] = partial(self._answered, queue)
        client = self._clients[queue]
        if not poller._client_registered(self._channel, client, kind):  # noqa: SLF001  # the same
            poller._register(self._channel, client, kind)  # noqa: SLF001  # the same
        key = f"{self._channel.global_keyprefix}{queue}"
        client.connection.send_command("BLMOVE", key, key, "RIGHT", "RIGHT", _WAIT)
        self._waiting[queue] = monotonic()

    def _answered(self, queue: str) -> None:
        """Read the answer; raises Empty, which tells kombu that no message came with it."""
        connection = self._clients[queue].connection
        try:
            connection.read_response()
        except OutOfMemoryError:  # BLMOVE counts as writing; what takes a message is allowed, and makes room
            self._rests_until = monotonic() + _WAIT
        except self._channel.connection_errors:
            connection.disconnect()
            raise
        self._waiting.pop(queue, None)
        self._channel.look_again()
        raise Empty

    def forget(self, connection: Any) -> None:
        """Take note that this connection is closed."""
        for queue, client in self._clients.items():
            if client.connection is connection:
                self._waiting.pop(queue, None)

    def check(self, patience: float) -> None:
        """Raise the alarm where an answer is so many seconds overdue."""
        overdue = [queue for queue, since in self._waiting.items() if monotonic() - since > _WAIT + patience]
        if any(not self._clients[queue].connection.can_read(timeout=0) for queue in overdue):
            logger.warning("Redis has not answered for %.0f seconds; connecting anew", _WAIT + patience)
            redis_silence.alarm()

    def close(self) -> None:
        """Close all of them."""
        for client in self._clients.values():
            if client.connection is not None:
                client.connection.disconnect()
        self._clients.clear()
        self._waiting.clear()


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's, which also watches doorbells."""

    _channels: Any
    _fd_to_chan: Any

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind.startswith(_KIND):  # also where there is no room for a message: it brings none
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def on_poll_start(self) -> None:
        for channel in self._channels:
            channel.connect_anew()
        super().on_poll_start()

    def maybe_check_brpop_health(self) -> None:
        super().maybe_check_brpop_health()  # type: ignore[misc]  # the same
        for channel in self._channels:
            if channel.health_check_interval:
                channel.doorbells.check(channel.health_check_interval)
