"""One connection to the Redis that Celery's broker settings describe: TLS, password, database, Sentinel, socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from redis.exceptions import ResponseError

__all__ = ["RedisConnection"]

Command = Sequence[str | bytes]


class RedisConnection:
    """Sends commands as they are, many in one go; whatever fails closes it, so that nobody reads a stale answer."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._broker: Any = None
        self._channel: Any = None
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the connection of the last `send` is still there."""
        return self._connection is not None

    def prefixed(self, key: str) -> str:
        """Return `key` behind the prefix that Celery's settings give all keys of the broker."""
        prefix = (self._app.conf.broker_transport_options or {}).get("global_keyprefix", "")
        return f"{prefix}{key}"

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one go and return their answers, errors of single commands among them.

        Raises redis.ConnectionError, redis.TimeoutError, kombu's OperationalError; then nobody knows what was done.
        """
        try:
            connection = self._connection = self._connection or self._connect()
            connection.send_packed_command([_encoded(command) for command in commands])
            return [_answer(connection) for _ in commands]
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Do what `send` does, and raise the first error among the answers."""
        answers = self.send(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        channel, self._channel = self._channel, None
        broker, self._broker = self._broker, None
        if channel is not None:
            channel.close()
        if broker is not None:
            broker.release()

    def _connect(self) -> Any:
        self._broker = self._app.connection_for_write()
        self._channel = self._broker.channel()
        connection = self._channel.client.connection_pool.get_connection()
        # Without a time-out, an answer that never comes would be waited for for ever.
        if connection.socket_timeout is None:
            connection.socket_timeout = 5.0
        return connection


def _encoded(command: Command) -> bytes:
    """Return a command as the server reads it (RESP's array of bulk strings); redis-py's own takes ten times as long."""
    pieces = [b"*%d\r\n" % len(command)]
    for word in command:
        value = word.encode() if isinstance(word, str) else word
        pieces.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(pieces)


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
