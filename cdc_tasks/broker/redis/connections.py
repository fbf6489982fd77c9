"""Few connections to a Redis broker: all channels of a process share one pool for their commands.

kombu gives each channel two pools, one for commands and one for connections that the event loop watches. It opens a
connection in the second pool only to check whether Redis answers. A worker has half a dozen channels over several kombu
connections, and most of them send something only occasionally. Here they mostly share one connection. Only a channel
that waits for messages has its own connections.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import redis

__all__ = ["SharedConnections"]

# Seconds. The connections that wait for messages need no PING: if an answer is overdue, all connections are reopened
# (`silent_connections.py`). The PING is for the connection of remote control, which may get no message for days.
_PING_WATCHED: Final = 20

# Several threads may use both. At worst one closes an idle connection, and another opens it again.
_pools: WeakValueDictionary[Any, redis.ConnectionPool] = WeakValueDictionary()
_users: WeakKeyDictionary[redis.ConnectionPool, WeakSet[Any]] = WeakKeyDictionary()


class SharedConnections:
    """A mixin, before kombu's channel among a class's bases."""

    connection: Any
    _pool: Any
    _registered: Any = True  # kombu 5.4 sets it to False until it has checked whether Redis answers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__.pop("client", None)  # the client that kombu checked, see `_create_client`

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        # Before a channel is registered, kombu only checks whether Redis answers: a connection for commands is enough.
        return super()._create_client(asynchronous=asynchronous and self._registered)  # type: ignore[misc]

    def _get_pool(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        pool = super()._get_pool(asynchronous)  # type: ignore[misc]  # also sets the channel's prefix for fanout
        if asynchronous:
            return pool
        client = self.connection.client
        shared = _pools.setdefault((type(self), client.__eqhash__(), repr(client.ssl)), pool)
        _users.setdefault(shared, WeakSet()).add(self)
        return shared

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002  # kombu's
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        if interval := parameters.get("health_check_interval"):
            # A worker sends something every few seconds, which checks the connection like a PING. One second more than
            # that interval avoids a PING before each command.
            parameters["health_check_interval"] = (
                max(interval, _PING_WATCHED) if asynchronous else interval + 1
            )
        return parameters

    def _disconnect_pools(self) -> None:
        shared, self._pool = self._pool, None
        super()._disconnect_pools()  # type: ignore[misc]
        if shared is not None:
            others = _users.get(shared)
            if others is not None:
                others.discard(self)
            if not others:
                shared.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close the channel, and the connection that gave back its messages."""
        super().close()  # type: ignore[misc]
        self._disconnect_pools()
