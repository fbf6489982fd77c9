"""Parts that kombu's Redis transport lacks before 5.7, so that ours works with kombu 5.3.4 and later.

The classes come last among the bases of ours: if kombu has a method of the same name, kombu's is used.
"""

from __future__ import annotations

import select
from functools import partial
from time import monotonic
from typing import Any

from kombu.log import get_logger
from kombu.transport import redis as kombu_redis

__all__ = ["ChannelParts", "PollerParts", "is_older", "is_readable", "register_older_timers"]

logger = get_logger(__name__)


def is_older() -> bool:
    """Return whether the installed kombu needs the timers of `register_older_timers`."""
    return not hasattr(kombu_redis.MultiChannelPoller, "maybe_check_brpop_health")


class ChannelParts:
    """The end of a channel's bases."""

    unacked_restore_interval = 10  # seconds

    def _flush_brpop_reauth(self) -> None:
        """Do nothing: this kombu does not change credentials between two answers."""


class PollerParts:
    """The end of a poller's bases."""

    _channels: Any

    def maybe_check_brpop_health(self) -> None:
        """Close the connections on which the answer to a claim is overdue."""
        now = monotonic()
        for channel in self._channels:
            connection, interval = channel._in_poll, channel.health_check_interval  # noqa: SLF001  # kombu has no other
            is_overdue = connection and interval and now - channel._brpop_sent_at >= interval + 1  # noqa: SLF001  # ours
            if is_overdue and not is_readable(connection):
                logger.warning("Redis has not answered a claim; the worker drops the connection")
                connection.disconnect()


def register_older_timers(transport: Any, connection: Any, loop: Any) -> list[Any]:
    """Start the timers that kombu 5.7 starts in the worker's event loop; return them.

    Only the closed connection is removed. Older versions stop the whole poll and rely on Celery to reconnect, which
    does not happen when we close a silent connection.
    """
    options, cycle = connection.client.transport_options, transport.cycle
    cycle._on_connection_disconnect = partial(_forget, cycle, loop)  # noqa: SLF001  # kombu sets it so
    restoring = options.get("unacked_restore_interval", ChannelParts.unacked_restore_interval)
    health = options.get("health_check_interval", kombu_redis.DEFAULT_HEALTH_CHECK_INTERVAL)
    return [
        loop.call_repeatedly(restoring, cycle.maybe_restore_messages),
        loop.call_repeatedly(health, cycle.maybe_check_brpop_health),
    ]


def _forget(cycle: Any, loop: Any, connection: Any) -> None:
    gone = set()
    for key in list(cycle._chan_to_sock):  # noqa: SLF001  # kombu has no other list
        channel, client, kind = key
        if client.connection is connection:
            del cycle._chan_to_sock[key]  # noqa: SLF001  # the same
            gone.add((channel, kind))
    for descriptor, owner in list(cycle._fd_to_chan.items()):  # noqa: SLF001  # the same
        if owner in gone:
            loop.remove(descriptor)
            del cycle._fd_to_chan[descriptor]  # noqa: SLF001  # the same


def is_readable(connection: Any) -> bool:
    """Return whether there is data to read, without reading it: the event loop reads it."""
    if connection._sock is None:  # noqa: SLF001  # redis-py's `can_read` would read it
        return False
    watcher = select.poll()
    watcher.register(connection._sock, select.POLLIN)  # noqa: SLF001  # the same
    return bool(watcher.poll(0))
