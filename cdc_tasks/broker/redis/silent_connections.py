"""One time-out closes all connections to a Redis that does not answer.

A worker has about ten connections to its broker, over several channels. If the network drops their packets, each
connection alone would block the worker until its time-out. Here the first time-out makes all of them reconnect.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import redis

__all__ = ["Liveness", "reconnect_all"]

_channels: WeakSet[Liveness] = WeakSet()


def reconnect_all() -> None:
    """Make every channel of this process reconnect before it sends anything else; may be called in any thread."""
    for channel in list(_channels):
        channel.must_reconnect = True
        for pool in (channel._pool, channel._async_pool):  # noqa: SLF001  # a mixin of the same class
            if pool is not None:
                pool.disconnect(inuse_connections=False)


class Liveness:
    """A mixin, before kombu's channel among a class's bases: reconnects when another channel had a time-out."""

    connection: Any
    _pool: Any
    _async_pool: Any
    must_reconnect = False  # the channel's own thread closes its connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _channels.add(self)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002  # kombu's
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        kind = parameters["connection_class"]
        parameters["connection_class"] = type(kind.__name__, (_ReportsTimeouts, kind), {})
        return parameters

    def reconnect_if_told(self) -> None:
        """If `reconnect_all` was called, close the connections that the event loop watches; it opens new ones."""
        if self.must_reconnect:
            self.must_reconnect = False
            watched = list(self.connection.cycle._chan_to_sock)  # noqa: SLF001  # kombu has no other list
            for client in (client for channel, client, _ in watched if channel is self):
                if client.connection is not None:
                    client.connection.disconnect()


class _ReportsTimeouts:
    """A mixin, before redis-py's connection among a class's bases."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.TimeoutError:
            if "timeout" not in kwargs:  # the caller set no shorter time-out: this was `socket_timeout`
                reconnect_all()
            raise
