"""One connection to Redis or Valkey: to the broker of Celery's settings, or to a URL."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, cast

import redis
from celery import Celery
from hiredis import pack_command
from kombu.exceptions import OperationalError
from redis import exceptions
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, ResponseError

from cdc_tasks import environment
from listener.core.publisher import BrokerAwayError, BrokerError, MessageTooLargeError

__all__ = [
    "Command",
    "RedisConnection",
    "address_of",
    "bad_certificate",
    "broker_channel",
    "too_large",
    "translated",
]

Command = tuple[str | bytes, ...]

# Without them the listener would wait forever for a lost reply. The user's own settings override them.
_TIMEOUTS: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}
_DEFAULT_MAX_BYTES: Final = 512 * 1024 * 1024  # in one word of a command; proto-max-bulk-len may differ

# Errors of a server that cannot accept a write now but may later: some have a class, some only a text.
_FOR_NOW: Final = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
_FOR_NOW_WORDS: Final = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")

# Bytes: below the size at which the allocator requests and returns memory pages each time.
_CHUNK: Final = 50_000

# Its stub has a tuple of one word.
_pack: Final = cast("Callable[[Command], bytes]", pack_command)


class RedisConnection:
    """Sends commands unchanged, many at a time. Any failure closes it, so no stale reply is ever read."""

    def __init__(self, connect: Callable[[ExitStack], Any], *, prefix: str, variable: str) -> None:
        """`connect` adds to the stack what has to be closed; `variable` is the setting with the address."""
        self._connect = connect
        self._prefix = prefix
        self._variable = variable
        self._connection: Any = None
        self._awaited = 0  # replies not read yet
        self._stack = ExitStack()
        self._max_bytes = _DEFAULT_MAX_BYTES

    @classmethod
    def of_broker(cls, app: Celery) -> RedisConnection:
        """Return one to Celery's broker, with its TLS, password, database, Sentinel, socket and key prefix."""
        options = app.conf.broker_transport_options or {}

        def connect(stack: ExitStack) -> Any:
            channel = stack.enter_context(broker_channel(app))
            return _own_connection(channel.client.connection_pool, stack)

        return cls(connect, prefix=options.get("global_keyprefix", ""), variable=address_of(app))

    @classmethod
    def of_cache(cls, url: str) -> RedisConnection:
        """Return one to the Redis of CACHE_URL."""

        def connect(stack: ExitStack) -> Any:
            pool = redis.ConnectionPool.from_url(url, **_TIMEOUTS)
            stack.callback(pool.disconnect)
            return _own_connection(pool, stack)

        return cls(connect, prefix="", variable=environment.set_by("CACHE_URL"))

    @property
    def is_open(self) -> bool:
        """Whether the connection of the last `send` is still open."""
        return self._connection is not None

    @property
    def max_bytes(self) -> int:
        """The maximum bytes in one word of a command; known once open."""
        return self._max_bytes

    @property
    def timeout(self) -> float:
        """The seconds that a reply may take."""
        return self._connection.socket_timeout or _TIMEOUTS["socket_timeout"]

    def prefixed(self, key: str) -> str:
        """Return `key` with the prefix of all broker keys from Celery's settings."""
        return f"{self._prefix}{key}"

    def open(self) -> None:
        """Connect if necessary; raises what `send` raises."""
        if self._connection is None:
            try:
                with translated(self._variable):
                    self._connection = self._connect(self._stack)
                    self._max_bytes = _max_bytes(self._connection)
            except ValueError as error:
                self.close()
                raise BrokerError(
                    f"{self._variable} or celeryconfig.py is wrong: {error}.", code="broker_settings"
                ) from error
            except BaseException:
                self.close()
                raise

    def send(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands together and return their replies, which may include errors.

        Raise BrokerAwayError: then it is unknown what was done. Raise BrokerError if waiting cannot help.
        """
        self.start(commands)
        return self.finish()

    def start(self, commands: Iterable[Command]) -> None:
        """Send commands whose replies `finish` returns; raises what `send` raises."""
        self.open()
        connection = self._connection
        try:
            with translated(self._variable):
                for count, text in _chunks(commands, self._max_bytes):
                    # No health check: it would reconnect without logging it, and lose a WATCH.
                    connection.send_packed_command([text], check_health=False)
                    self._awaited += count
        except BaseException:
            self.close()
            raise

    def finish(self) -> list[Any]:
        """Return the replies to the started commands; raises what `send` raises."""
        connection, awaited = self._connection, self._awaited
        self._awaited = 0
        try:
            with translated(self._variable):
                return _answers(connection, awaited)
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands and return their replies; raise the first error among them, translated."""
        answers = self.send(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self.refusal(answer)
        return answers

    def refusal(self, error: ResponseError) -> BrokerAwayError | BrokerError:
        """Translate an error reply of the server."""
        return _refusal(error, self._variable)

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        connection, self._connection = self._connection, None
        self._awaited = 0
        if connection is not None:
            connection.disconnect()
        self._stack.close()


def address_of(app: Celery) -> str:
    """Return the source of the broker's address, for errors: a variable, or a setting of a user's app."""
    if app.main in {"listener", "cdc_tasks", None}:
        return environment.set_by("CELERY_BROKER_URL")
    return f"broker_url of the app {app.main}"


def _own_connection(pool: redis.ConnectionPool, stack: ExitStack) -> Any:
    """Return an unused connection of the pool; `stack` keeps it, and returns it to the pool.

    It comes from a client: the pool's own method needs an argument before redis-py 5.3, and warns about it since.
    """
    client = redis.Redis(connection_pool=pool, single_connection_client=True)
    stack.callback(client.close)
    return client.connection


@contextmanager
def broker_channel(app: Celery) -> Iterator[Any]:
    """Open a kombu channel to Celery's broker: one attempt, without waiting."""
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
    """Raise BrokerAwayError for temporary errors, BrokerError for those that a person has to fix."""
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise BrokerError(
            f"Redis refuses us: {error}.",
            hint=f"Correct the user and password in {variable}.",
            code="broker_access_refused",
        ) from error
    except ResponseError as error:
        raise _refusal(error, variable) from error
    except (redis.RedisError, OSError, OperationalError) as error:
        if certificate := bad_certificate(error):
            raise BrokerError(
                f"The certificate of Redis is not valid: {certificate.verify_message}.",
                hint=f"Correct the host in {variable}, or ssl_ca_certs in broker_use_ssl of celeryconfig.py.",
                code="certificate",
            ) from error
        raise BrokerAwayError(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        raise BrokerError(
            f"{variable} or celeryconfig.py is wrong: {error}.", code="broker_settings"
        ) from error


def _refusal(error: ResponseError, variable: str) -> BrokerAwayError | BrokerError:
    text = str(error)
    if isinstance(error, _FOR_NOW) or text.startswith(_FOR_NOW_WORDS):
        return BrokerAwayError(f"Redis: {error}")
    hint = code = None
    if isinstance(error, NoPermissionError):
        hint = f"Allow it to the user of {variable}: ACL SETUSER <user> ~* +@read +@write +@transaction +@connection"
        code = "broker_access_refused"
    elif "WRONGTYPE" in text:
        hint = "Something else has that key: redis-cli RENAME it, or choose another name for the queue."
        code = "key_in_use"
    return BrokerError(f"Redis refuses a command: {error}.", hint=hint, code=code)


def bad_certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the certificate error among the causes of `error`, if there is one."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _chunks(commands: Iterable[Command], max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the commands in the server's format, in pieces, each with the number of its commands.

    Raise MessageTooLargeError for a word of more than `max_bytes`: the server would close the connection.
    """
    size, pieces = 0, list[bytes]()
    for command in commands:
        piece = _pack(command)
        length = len(piece)
        if length > max_bytes and (longest := max(map(len, command))) > max_bytes:
            raise too_large(longest, max_bytes)
        pieces.append(piece)
        size += length
        if size >= _CHUNK:
            yield len(pieces), b"".join(pieces)
            size, pieces = 0, []
    if pieces:
        yield len(pieces), b"".join(pieces)


def too_large(length: int, max_bytes: int) -> MessageTooLargeError:
    """Return the error for a message of `length` bytes if the limit is `max_bytes`."""
    return MessageTooLargeError(
        f"A message of {length} bytes is too large for Redis; its limit is {max_bytes}.",
        limit=max_bytes,
        hint="Send fewer columns (columns= of the route), or allow it: "
        f"redis-cli CONFIG SET proto-max-bulk-len {2 * length}",
    )


def _max_bytes(connection: Any) -> int:
    """Return the server's limit for one word in bytes; the default if reading it is not allowed."""
    connection.send_packed_command([_pack(("CONFIG", "GET", "proto-max-bulk-len"))], check_health=False)
    answer = _answer(connection)
    if not answer or isinstance(answer, ResponseError):
        return _DEFAULT_MAX_BYTES
    return int(next(iter(answer.values())) if isinstance(answer, dict) else answer[1])  # RESP3, RESP2


def _answers(connection: Any, number: int) -> list[Any]:
    """Return the next replies, without a Python call for each unless it is an error."""
    answers: list[Any] = []
    add, read = answers.append, connection.read_response
    while len(answers) < number:
        try:
            for _ in range(number - len(answers)):
                add(read())
        except ResponseError as error:
            add(_kept(error))
    return answers


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return _kept(error)


def _kept(error: ResponseError) -> ResponseError:
    """Return an error reply; raise it if no other reply follows."""
    if str(error).startswith("Protocol error"):  # the server closes the connection
        raise error
    return error
