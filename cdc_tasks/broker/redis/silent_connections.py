"""A Redis that says nothing any more is noticed once, and not on one connection after the other.

A worker has about ten connections to its broker, over several channels. Where the network swallows what they send, each
of them alone would hold up the worker for its whole time-out. Here the first that hears nothing speaks for all.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import redis

__all__ = ["Liveness", "reconnect_all"]

_channels: WeakSet[Liveness] = WeakSet()


def reconnect_all() -> None:
    """Let every channel of this process connect anew, before it sends anything else; from any thread."""
    for channel in list(_channels):
        channel.must_reconnect = True
        for pool in (channel._pool, channel._async_pool):  # noqa: SLF001  # a mixin of the same class
            if pool is not None:
                pool.disconnect(inuse_connections=False)


class Liveness:
    """Before kombu's channel in a class's bases."""

    connection: Any
    _pool: Any
    _async_pool: Any
    must_reconnect = False  # its connections are to be closed, by the thread that has them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _channels.add(self)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002  # kombu's
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        kind = parameters["connection_class"]
        parameters["connection_class"] = type(kind.__name__, (_ReportsTimeouts, kind), {})
        return parameters

    def reconnect_if_told(self) -> None:
        """Close what the event loop watches, if there was an alarm: it connects again in its next round."""
        if self.must_reconnect:
            self.must_reconnect = False
            watched = list(self.connection.cycle._chan_to_sock)  # noqa: SLF001  # kombu has no other list
            for client in (client for channel, client, _ in watched if channel is self):
                if client.connection is not None:
                    client.connection.disconnect()


class _ReportsTimeouts:
    """Before redis-py's connection in a class's bases."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.TimeoutError:
            if "timeout" not in kwargs:  # nobody asked for a short wait: this was `socket_timeout`
                reconnect_all()
            raise
