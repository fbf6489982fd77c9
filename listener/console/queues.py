"""The messages waiting at the broker, their age, and their consumers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cdc_tasks.broker.rabbitmq.partitions import partitions_of
from cdc_tasks.errors import CDCError
from listener.core.publisher import BrokerAwayError
from listener.daemon.database_url import DatabaseType
from listener.daemon.metrics import SINCE_2000
from listener.daemon.samples import RedisQueues, queues_of
from listener.daemon.wiring import STORE_AWAY, is_redis
from listener.metrics.meter import ENQUEUED
from listener.metrics.queue_ages import QueueAges

if TYPE_CHECKING:
    from celery import Celery

    from cdc_tasks.routing.router import Route
    from listener.console.connections import BrokerConnection
    from listener.daemon.settings import ListenerSettings
    from listener.metrics.rates import RateSample

__all__ = ["QueueLength", "Queues"]

log = structlog.get_logger()

_ASK_EVERY: Final = 20.0  # seconds
_PATIENCE: Final = 1.0  # seconds that workers have to answer


class QueueLength(NamedTuple):
    """A queue that a route sends to."""

    name: str
    length: int | None  # None: the broker does not have it yet
    oldest: float | None  # age of its oldest message in seconds; None: unknown
    consumers: int | None  # workers that consume it; None: unknown (yet)
    set_aside: int


class Queues:
    """Reads the queues of the settings and the routes, on persistent connections."""

    def __init__(self, settings: ListenerSettings, app: Celery, broker: BrokerConnection) -> None:
        self._app = app
        self._broker = broker
        is_binlog = settings.database_type is DatabaseType.MYSQL
        self._ages = QueueAges(0.0 if is_binlog else SINCE_2000)
        self._is_redis = is_redis(app)
        self._redis: RedisQueues | None = None
        self._consumers = Consumers(app)
        self._published = _Published()

    def read(
        self, routes: Sequence[Route], aside: Mapping[str, int], rates: Iterable[RateSample]
    ) -> list[QueueLength]:
        """Return them by name; `aside`: messages set aside for each, `rates`: recently published messages.

        Raises CDCError.
        """
        if self._is_redis:
            return self._of_redis(routes, aside)
        queues = {queue: {route.id for route in each} for queue, each in queues_of(self._app, routes).items()}
        if any(route.key is not None for route in routes):
            queues |= {partition: set() for partition in partitions_of(self._app) if partition not in queues}
        self._published.add(rates)
        return self._broker.ask(
            lambda kombu: [self._asked(kombu, name, routes, aside) for name, routes in sorted(queues.items())]
        )

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _of_redis(self, routes: Sequence[Route], aside: Mapping[str, int]) -> list[QueueLength]:
        if self._redis is None:
            self._redis = RedisQueues(self._app, queues_of(self._app, routes), self._ages)
        found = _twice(self._redis)
        return [
            QueueLength(name, length, found.ages[name], self._consumers.of(name), aside.get(name, 0))
            for name, length in sorted(found.lengths.items())
        ]

    def _asked(self, kombu: Any, name: str, routes: set[str], aside: Mapping[str, int]) -> QueueLength:
        beside = aside.get(name, 0)
        try:
            with kombu.channel() as channel:
                declared = channel.queue_declare(name, passive=True)
        except kombu.channel_errors:
            return QueueLength(name, None, None, None, beside)
        length = int(declared.message_count)
        consumers = declared.consumer_count if kombu.transport.driver_type == "amqp" else None
        oldest = self._ages.of_length(name, length, self._published.of({*routes, ENQUEUED}))
        return QueueLength(name, length, oldest, consumers, beside)


def _twice(read: Callable[[], Any]) -> Any:
    """Return the result of `read`; retry once if the old session has ended. Raise CDCError."""
    try:
        try:
            return read()
        except BrokerAwayError:
            return read()
    except (RedisError, OperationalError, OSError) as error:  # of the first read, before there is a session
        raise CDCError(f"The broker did not answer: {error}", hint=STORE_AWAY, code="broker_away") from error


class Consumers:
    """The number of consumers per queue, for a broker that does not report it: queries the workers at times."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._found: Mapping[str, int] | None = None
        self._asked_at = float("-inf")
        self._lock = Lock()

    def of(self, queue: str) -> int | None:
        """Return the workers' last answer; None: they have not been queried yet, which starts now."""
        with self._lock:
            if monotonic() - self._asked_at > _ASK_EVERY:
                self._asked_at = monotonic()
                Thread(target=self._ask, name="console-consumers", daemon=True).start()
        return None if self._found is None else self._found.get(queue, 0)

    def _ask(self) -> None:
        try:
            answers = self._app.control.inspect(timeout=_PATIENCE).active_queues() or {}
        except Exception as error:  # noqa: BLE001 - of a broker of any kind; the next question may succeed
            log.debug("consumers_not_asked", error=type(error).__name__)
            self._found = None
            return
        self._found = Counter(queue["name"] for queues in answers.values() for queue in queues)


class _Published:
    """The messages published per route since the console's start, according to the rates."""

    def __init__(self) -> None:
        self._total: Final = Counter[str]()
        self._last = float("-inf")

    def add(self, rates: Iterable[RateSample]) -> None:
        for each in rates:
            if each.at > self._last:
                self._last = each.at
                for route, done in each.routes.items():
                    self._total[route] += done.published

    def of(self, routes: set[str]) -> int:
        return sum(self._total[route] for route in routes)
