"""Connections of one app with our transports; other apps in the process keep kombu's transports.

kombu finds a transport in one table for the whole process (`kombu.transport.TRANSPORT_ALIASES`). So our connections
check the class that kombu has found, and use ours if it replaces that class. This works for each way to write an
address, and for a broker with several addresses.
"""

from __future__ import annotations

from typing import Any, Final

from kombu import Connection as KombuConnection
from kombu import connection as kombu_connection
from kombu.connection import ConnectionPool
from kombu.utils.imports import symbol_by_name

__all__ = ["TRANSPORT_OPTIONS", "Connection"]

# kombu's transport: ours
_OURS: Final = {
    "kombu.transport.pyamqp:SSLTransport": "cdc_tasks.broker.rabbitmq.transport:SSLTransport",
    "kombu.transport.pyamqp:Transport": "cdc_tasks.broker.rabbitmq.transport:Transport",
    "kombu.transport.redis:SentinelTransport": "cdc_tasks.broker.redis.transport:SentinelTransport",
    "kombu.transport.redis:Transport": "cdc_tasks.broker.redis.transport:Transport",
}

# Options that our transports need, by kind of broker; the app's own `broker_transport_options` take precedence.
TRANSPORT_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "amqp": {
        "confirm_publish": True,  # off by default: the broker could drop a message unnoticed
        "read_timeout": 10,
        "write_timeout": 10,
        "max_retries": 3,
    },
    "redis": {
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "health_check_interval": 5,
        # A worker's tasks are delivered again if it has not renewed its lease for this many seconds, because it has
        # died or hangs. A living worker renews it every ten seconds, however long its tasks run or wait.
        "visibility_timeout": 60,
        "unacked_restore_interval": 5,
    },
}


class Connection(KombuConnection):
    """kombu's connection with our transport, if the broker is Redis or RabbitMQ."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transport = self.get_transport_cls()
        if transport.__module__.startswith("cdc_tasks."):
            self.transport_options = {
                **TRANSPORT_OPTIONS[transport.driver_type],
                **(self.transport_options or {}),
            }

    def get_transport_cls(self) -> Any:
        """Return our transport's class instead of kombu's class that it replaces."""
        found: Any = super().get_transport_cls()
        ours = _OURS.get(f"{found.__module__}:{found.__qualname__}")
        return found if ours is None else symbol_by_name(ours)

    def Pool(self, limit: int | None = None, **options: Any) -> ConnectionPool:  # noqa: N802  # kombu's
        """Return a pool of such connections; kombu's pool has connections of its own class."""
        return _Pool(self, limit, **options)

    def __eqhash__(self) -> Any:
        """Distinguish this connection from kombu's to the same broker, because all apps share kombu's pools."""
        found: Any = super().__eqhash__()
        return type(found)(*found, "cdc_tasks")


# kombu before 5.5 has no separate class for them.
_KombuPooled: Any = getattr(kombu_connection, "PooledConnection", KombuConnection)


class _PooledConnection(Connection, _KombuPooled):  # type: ignore[misc]  # which one depends on kombu
    """kombu's connection of a pool, with our transport."""


class _Pool(ConnectionPool):
    def new(self) -> Any:
        """Return a connection that is not yet open."""
        made = super().new()
        made.__class__ = _PooledConnection
        return made
