"""One connection to Redis or Valkey: to the broker that Celery's settings describe, or to a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis import exceptions
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, ResponseError

from listener.core.publisher import BrokerAwayError, BrokerError, MessageTooLargeError
from listener.publish.tls import bad_certificate

__all__ = ["Command", "RedisConnection", "broker_channel", "too_large", "translated"]

Command = Sequence[str | bytes]

# Without them an answer that never comes would be waited for for ever; the user's own settings go before.
_TIMEOUTS: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}
_LONGEST_WORD: Final = 512 * 1024 * 1024  # bytes, unless proto-max-bulk-len says otherwise

# What a server says while it cannot take a write, and may again later: some with a class, some in words.
_FOR_NOW: Final = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
_FOR_NOW_WORDS: Final = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")

_CHUNK = (
    50_000  # bytes: below what makes the allocator ask the system for pages, and give them back, each time
)


class RedisConnection:
    """Sends commands as they are, many in one go; whatever fails closes it, so that nobody reads a stale answer."""

    def __init__(self, connect: Callable[[ExitStack], Any], *, prefix: str, variable: str) -> None:
        """`connect` leaves on the stack what has to be closed; `variable` is where the address comes from."""
        self._connect = connect
        self._prefix = prefix
        self._variable = variable
        self._connection: Any = None
        self._awaited = 0  # answers
        self._stack = ExitStack()
        self._longest = _LONGEST_WORD

    @classmethod
    def of_broker(cls, app: Celery) -> RedisConnection:
        """Return one to Celery's broker: TLS, password, database, Sentinel, socket and key prefix as it has them."""
        options = app.conf.broker_transport_options or {}

        def connect(stack: ExitStack) -> Any:
            channel = stack.enter_context(broker_channel(app))
            return channel.client.connection_pool.get_connection()

        return cls(connect, prefix=options.get("global_keyprefix", ""), variable="CELERY_BROKER_URL")

    @classmethod
    def of_cache(cls, url: str) -> RedisConnection:
        """Return one to the Redis of CACHE_URL."""

        def connect(stack: ExitStack) -> Any:
            pool = redis.ConnectionPool.from_url(url, **_TIMEOUTS)
            stack.callback(pool.disconnect)
            return pool.get_connection()

        return cls(connect, prefix="", variable="CACHE_URL")

    @property
    def is_open(self) -> bool:
        """Whether the connection of the last `send` is still there."""
        return self._connection is not None

    @property
    def longest(self) -> int:
        """How many bytes the server takes in one word of a command, as far as it has told."""
        return self._longest

    @property
    def timeout(self) -> float:
        """Return how many seconds an answer may take."""
        return self._connection.socket_timeout or _TIMEOUTS["socket_timeout"]

    def prefixed(self, key: str) -> str:
        """Return `key` behind the prefix that Celery's settings give all keys of the broker."""
        return f"{self._prefix}{key}"

    def open(self) -> None:
        """Connect, if we are not; raises what `send` raises."""
        if self._connection is None:
            try:
                with translated(self._variable):
                    self._connection = self._connect(self._stack)
                    self._longest = _longest_word(self._connection)
            except ValueError as error:
                self.close()
                raise BrokerError(f"{self._variable} or celeryconfig.py is wrong: {error}.") from error
            except BaseException:
                self.close()
                raise

    def send(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands in one go and return their answers, errors of single commands among them.

        Raises BrokerAwayError: then nobody knows what was done; BrokerError where waiting cannot help.
        """
        self.start(commands)
        return self.finish()

    def start(self, commands: Iterable[Command]) -> None:
        """Send commands whose answers `finish` will return; raises what `send` raises."""
        self.open()
        connection = self._connection
        try:
            with translated(self._variable):
                for count, text in _chunks(commands, self._longest):
                    # No check of its health: that would connect anew without a word, and forget a WATCH.
                    connection.send_packed_command([text], check_health=False)
                    self._awaited += count
        except BaseException:
            self.close()
            raise

    def finish(self) -> list[Any]:
        """Return the answers to what was started; raises what `send` raises."""
        connection, awaited = self._connection, self._awaited
        self._awaited = 0
        try:
            with translated(self._variable):
                return [_answer(connection) for _ in range(awaited)]
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands and return their answers; raises the first error among them in our words."""
        answers = self.send(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self.refusal(answer)
        return answers

    def refusal(self, error: ResponseError) -> BrokerAwayError | BrokerError:
        """Return what an error that the server answered with means."""
        return _refusal(error, self._variable)

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        connection, self._connection = self._connection, None
        self._awaited = 0
        if connection is not None:
            connection.disconnect()
        self._stack.close()


@contextmanager
def broker_channel(app: Celery) -> Iterator[Any]:
    """Open a channel of kombu's to Celery's broker; it is not tried twice, nor waited for."""
    options = {**_TIMEOUTS, **(app.conf.broker_transport_options or {})}
    with app.connection_for_write(transport_options=options) as broker:
        broker.ensure_connection(
            max_retries=len(broker.alt) or 1,
            interval_start=0,
            interval_max=0,
            reraise_as_library_errors=False,
        )
        with broker.channel() as channel:
            yield channel


@contextmanager
def translated(variable: str) -> Iterator[None]:
    """Raise BrokerAwayError for what passes, BrokerError for what a person has to mend."""
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise BrokerError(
            f"Redis refuses us: {error}.", hint=f"Correct the user and password in {variable}."
        ) from error
    except ResponseError as error:
        raise _refusal(error, variable) from error
    except (redis.RedisError, OSError, OperationalError) as error:
        if certificate := bad_certificate(error):
            raise BrokerError(
                f"The certificate of Redis does not pass: {certificate.verify_message}.",
                hint=f"Correct the host in {variable}, or ssl_ca_certs in broker_use_ssl of celeryconfig.py.",
            ) from error
        raise BrokerAwayError(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        raise BrokerError(
            f"Redis cannot be reached as {variable} and celeryconfig.py say: {error}."
        ) from error


def _refusal(error: ResponseError, variable: str) -> BrokerAwayError | BrokerError:
    text = str(error)
    if isinstance(error, _FOR_NOW) or text.startswith(_FOR_NOW_WORDS):
        return BrokerAwayError(f"Redis: {error}")
    hint = None
    if isinstance(error, NoPermissionError):
        hint = f"Allow it to the user of {variable}: ACL SETUSER <user> ~* +@read +@write +@transaction +@connection"
    elif "WRONGTYPE" in text:
        hint = "Something else has that key: redis-cli RENAME it, or choose another name for the queue."
    return BrokerError(f"Redis refuses a command: {error}.", hint=hint)


def _chunks(commands: Iterable[Command], longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the commands as the server reads them, in pieces, each with the number of its commands.

    Raises MessageTooLargeError for what is longer than `longest` bytes: the server would hang up, most often without a word.
    """
    size, pieces = 0, list[bytes]()
    for command in commands:
        pieces.append(_encoded(command))
        if len(pieces[-1]) > longest and (length := max(map(len, command))) > longest:
            raise too_large(length, longest)
        size += len(pieces[-1])
        if size >= _CHUNK:
            yield len(pieces), b"".join(pieces)
            size, pieces = 0, []
    if pieces:
        yield len(pieces), b"".join(pieces)


def too_large(length: int, longest: int) -> MessageTooLargeError:
    """Return what a message of `length` bytes means where the server takes `longest`."""
    return MessageTooLargeError(
        f"A message of {length} bytes is too large for Redis, which takes {longest}.",
        limit=longest,
        hint="Send fewer columns (columns= of the route), or allow it: "
        f"redis-cli CONFIG SET proto-max-bulk-len {2 * length}",
    )


def _encoded(command: Command) -> bytes:
    """Return a command as the server reads it, an array of bulk strings; redis-py's own takes ten times as long."""
    pieces = [b"*%d\r\n" % len(command)]
    for word in command:
        value = word.encode() if isinstance(word, str) else word
        pieces += b"$%d\r\n" % len(value), value, b"\r\n"
    return b"".join(pieces)


def _longest_word(connection: Any) -> int:
    """Return how many bytes the server takes in one message; its default where we may not ask."""
    connection.send_packed_command([_encoded(("CONFIG", "GET", "proto-max-bulk-len"))], check_health=False)
    answer = _answer(connection)
    if not answer or isinstance(answer, ResponseError):
        return _LONGEST_WORD
    return int(next(iter(answer.values())) if isinstance(answer, dict) else answer[1])  # RESP3, RESP2


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        if str(error).startswith("Protocol error"):  # the server hangs up: no other answer will come
            raise
        return error
