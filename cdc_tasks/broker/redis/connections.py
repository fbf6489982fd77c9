"""How a process gets by with few connections to a Redis broker: all its channels share a pool for their commands.

kombu gives each channel two pools, one for commands and one for connections that the event loop watches, and opens a
connection in the second only to see that Redis answers. A worker has half a dozen channels over several kombu
connections, and most of them only send something now and then. Here they take turns, mostly on one connection, and only
what waits has a connection of its own.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import redis

__all__ = ["FewConnections"]

# Seconds. What the event loop waits on is found dead without a PING: an answer to a look or a wait is overdue, and that
# raises the alarm for all. The PING is left for the connection of remote control, on which nothing may come for days.
_PING_WATCHED: Final = 20

# Both may be used by several threads. At worst one closes a connection that nobody uses, and another opens it again.
_pools: WeakValueDictionary[Any, redis.ConnectionPool] = WeakValueDictionary()
_users: WeakKeyDictionary[redis.ConnectionPool, WeakSet[Any]] = WeakKeyDictionary()


class FewConnections:
    """Before kombu's channel in a class's bases."""

    connection: Any
    _pool: Any
    _registered: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__.pop("client", None)  # the one for commands, which answered: see `_create_client`

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        # As long as a channel is not registered, kombu only asks whether Redis answers.
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
            # What a worker sends every few seconds shows as much as a PING would: so that there is none before each.
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
        """Close it, and the connection that gave back what was left in it."""
        super().close()  # type: ignore[misc]
        self._disconnect_pools()
