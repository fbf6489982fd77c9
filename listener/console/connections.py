"""The console's connections: a small pool, dropped when they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import BoundedSemaphore, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kombu.exceptions import OperationalError

from cdc_tasks.errors import CDCError
from listener.core.publisher import BrokerAwayError
from listener.daemon.wiring import STORE_AWAY, checkpoint_store

if TYPE_CHECKING:
    from celery import Celery

    from listener.daemon.settings import ListenerSettings
    from listener.publish.redis.connection import RedisConnection

__all__ = ["BrokerConnection", "Stores"]

T = TypeVar("T")

_MOST: Final = 4
_OLD: Final = (
    60.0  # seconds; after a failover an old connection may lead to a server that has become a replica
)


class Stores:
    """Connections to the Redis that has the checkpoint; safe for several threads."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._room = BoundedSemaphore(_MOST)
        self._idle: list[tuple[RedisConnection, float]] = []  # and when it was opened

    @contextmanager
    def opened(self) -> Iterator[RedisConnection]:
        """Lend a connection that has just answered. Raises BrokerAwayError, BrokerError, also within the block."""
        with self._room:
            redis, since = self._idle.pop() if self._idle else (checkpoint_store(self._settings), monotonic())
            if monotonic() - since > _OLD:
                redis.close()
            if not _answers(redis):
                since = monotonic()  # it reconnects with the next command
            try:
                yield redis
            except BrokerAwayError as error:
                if error.hint:
                    raise
                raise BrokerAwayError(error.message, hint=STORE_AWAY) from error
            finally:
                self._idle.append((redis, since))

    def close(self) -> None:
        """Close the unused connections."""
        while self._idle:
            self._idle.pop()[0].close()


def _answers(redis: RedisConnection) -> bool:
    if not redis.is_open:
        return False
    try:
        redis.ask([("PING",)])
    except BrokerAwayError:
        redis.close()
    return redis.is_open


class BrokerConnection:
    """kombu's connection to the broker: one, used by one thread at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._lock = Lock()
        self._stack = ExitStack()
        self._kept: Any = None

    def ask(self, read: Callable[[Any], T]) -> T:
        """Return the result of `read` for the connection; if an old connection has failed, retry once.

        Raise CDCError with the code broker_away.
        """
        with self._lock:
            if self._kept is not None:
                try:
                    return read(self._kept)
                except Exception:  # noqa: BLE001 - whatever it is: a new connection tells
                    self._drop()
            return self._ask_anew(read)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._drop()

    def _ask_anew(self, read: Callable[[Any], T]) -> T:
        kombu = self._stack.enter_context(self._app.connection_for_write())
        errors: tuple[type[BaseException], ...] = (
            *(OperationalError, OSError),
            *kombu.connection_errors,
            *kombu.channel_errors,
        )
        try:
            kombu.ensure_connection(
                max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
            )
            found = read(kombu)
        except errors as error:
            self._drop()
            raise CDCError(
                f"The broker did not answer: {error}",
                hint="Start it, or correct CELERY_BROKER_URL.",
                code="broker_away",
            ) from error
        except BaseException:
            self._drop()
            raise
        self._kept = kombu
        return found

    def _drop(self) -> None:
        self._kept = None
        stack, self._stack = self._stack, ExitStack()
        with suppress(Exception):  # it is lost anyway
            stack.close()
