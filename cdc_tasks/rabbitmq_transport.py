"""kombu's RabbitMQ transport, which waits for a confirmation for seconds only.

kombu waits for ever, and so a worker whose connection swallows what it sends hangs: the wait is in its event loop, and
no heartbeat is looked at any more.
"""

from __future__ import annotations

from typing import Any, Final

from kombu.transport import pyamqp

__all__ = ["SSLTransport", "Transport"]

_PATIENCE: Final = 3.0  # seconds; RabbitMQ has written a message to disk long before that


class _Channel(pyamqp.Channel):
    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        """Publish, and wait; raises TimeoutError, for kombu an error of the connection, which it makes anew."""
        if kwargs.get("confirm_timeout") is None:
            kwargs["confirm_timeout"] = _PATIENCE
        return super().basic_publish_confirm(*args, **kwargs)


class _Connection(pyamqp.Connection):
    Channel = _Channel


class Transport(pyamqp.Transport):
    """In the place of kombu's `amqp://` and `pyamqp://`."""

    Connection = _Connection


class SSLTransport(pyamqp.SSLTransport):
    """In the place of kombu's `amqps://`."""

    Connection = _Connection
