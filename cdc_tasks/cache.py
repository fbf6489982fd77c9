"""The Redis at CACHE_URL: one client per process, and errors that show whether a retry may help.

An application with `cdc_tasks.install` has it at CDC_CACHE_URL, or else in its broker, if that is Redis. CACHE_URL is
not read there: for other programs it is a cache, which may be emptied at any time.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu.exceptions import OperationalError
from redis.backoff import EqualJitterBackoff
from redis.retry import Retry

from cdc_tasks import environment
from cdc_tasks.addresses import check_redis_address
from cdc_tasks.environment import TWINS, SettingsError, is_set, secret_of, value_of
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import current_app, has_redis, is_foreign
from cdc_tasks.retry import TryAgain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = [
    "CacheAwayError",
    "NoRedisError",
    "client",
    "close_idle",
    "errors_translated",
    "make_client",
    "where",
]

_DEFAULT_URL: Final = "redis://localhost:6379/1"
_WITHOUT_KEYS: Final = frozenset({"CLIENT", "INFO", "PING", "SCRIPT", "TIME", "UNWATCH"})


class CacheAwayError(TryAgain):
    """The Redis of the master cache did not answer."""


class NoRedisError(CDCError):
    """There is no Redis for the data of cdc-tasks: the broker is not Redis, and CDC_CACHE_URL is not set."""


@cache
def client() -> redis.Redis:
    """Return this process's client. Threads may share it, and it works after a fork.

    Raise NoRedisError, SettingsError; if the client is the broker's, raise what `errors_translated` translates.
    """
    return make_client(
        socket_timeout=5,
        socket_connect_timeout=5,
        health_check_interval=15,
        # All our commands and scripts are idempotent, so they are repeated after a broken connection.
        retry=Retry(EqualJitterBackoff(base=0.1, cap=1), retries=3),
    )


def make_client(*, retry: Retry | None, **options: Any) -> redis.Redis:
    """Return a client with these options of redis-py; raises what `client` raises."""
    app = current_app()
    if not is_foreign(app):
        return redis.Redis.from_url(_checked(value_of("CACHE_URL") or _DEFAULT_URL), retry=retry, **options)
    if url := secret_of(TWINS["CACHE_URL"]):
        return redis.Redis.from_url(_checked(url), retry=retry, **options)
    return _client_of_broker(app, retry, options)


def _checked(url: str) -> str:
    """Return the URL; raise SettingsError, without a part of it, if redis-py might show it in an error."""
    try:
        check_redis_address(url)
    except ValueError as error:
        raise SettingsError(
            f"{where()} cannot be used: {error}.", hint=f"Write e.g. {where()}={_DEFAULT_URL}"
        ) from None
    return url


def where() -> str:
    """Return the name of its address for errors: a variable, or the broker."""
    if not is_foreign(current_app()):
        return environment.set_by("CACHE_URL")
    return environment.set_by("CACHE_URL") if is_set(TWINS["CACHE_URL"]) else "the broker's address"


def _client_of_broker(app: Celery, retry: Retry | None, options: dict[str, Any]) -> redis.Redis:
    """Return a client for the app's broker, with its TLS, password, database and Sentinel."""
    if not has_redis(app):
        raise NoRedisError(
            hint="Set it for every worker, for example: CDC_CACHE_URL=redis://localhost:6379/1"
        )
    connection = app.connection_for_write(transport_options=options)
    channel: Any = connection.channel()
    found = _PrefixedRedis(channel.pool, str(channel.global_keyprefix or ""))
    if retry is not None:
        found.set_retry(retry)
    vars(found)["_cdc_tasks"] = channel  # its pool is closed with it
    return found


class _PrefixedRedis(redis.Redis):
    """A client whose keys begin with `global_keyprefix`, like all other keys of the app's broker.

    Apps may share a broker, each with its own prefix and a Redis user who may only use these keys. kombu's own client
    with a prefix supports only the commands that kombu uses.
    """

    def __init__(self, pool: redis.ConnectionPool, prefix: str) -> None:
        super().__init__(connection_pool=pool)
        self._prefix = prefix

    def execute_command(self, *args: Any, **options: Any) -> Any:
        run: Any = super().execute_command  # untyped in some versions
        return run(*_with_prefix(self._prefix, args), **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:  # noqa: FBT001, FBT002  # redis-py's
        found = _PrefixedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        found.prefix = self._prefix
        return found


class _PrefixedPipeline(redis.client.Pipeline):
    prefix = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        run: Any = super().execute_command
        return run(*_with_prefix(self.prefix, args), **options)


def _with_prefix(prefix: str, command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the command with the prefix before each key."""
    name = str(command[0]).upper()
    if not prefix or name.partition(" ")[0] in _WITHOUT_KEYS:
        return command
    first, after = _place_of_keys(name, command)
    keys = (f"{prefix}{key.decode() if isinstance(key, bytes) else key}" for key in command[first:after])
    return (*command[:first], *keys, *command[after:])


def _place_of_keys(name: str, command: tuple[Any, ...]) -> tuple[int, int]:
    """Return where the keys of a command begin and end; most commands have one key, after the name."""
    match name:
        case "DEL" | "EXISTS" | "MGET" | "UNLINK" | "WATCH":
            return 1, len(command)
        case "BLPOP" | "BRPOP":
            return 1, len(command) - 1  # the time-out
        case "EVAL" | "EVALSHA":
            return 3, 3 + int(command[2])
        case _:
            return 1, 2


def close_idle() -> None:
    """Close this process's idle connections; the next command opens one again."""
    client().connection_pool.disconnect(inuse_connections=False)


@contextmanager
def errors_translated(variable: str | None = None) -> Iterator[None]:
    """Raise CacheAwayError for temporary errors: no connection, loading, a read-only replica, memory full.

    `variable` names this Redis in errors; None: the result of `where`.
    """
    try:
        yield
    except (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.ReadOnlyError,
        redis.OutOfMemoryError,
        OperationalError,
    ) as error:
        named = variable or where()
        raise CacheAwayError(
            f"Redis at {named} did not accept the command: {error}", hint=f"Start it, or correct {named}."
        ) from error
