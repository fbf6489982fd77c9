"""Read from the servers what `/metrics` shows: each reader has its own session, and keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import orjson
from celery import Celery

from cdc_tasks.broker.queues import own_queues
from cdc_tasks.broker.rabbitmq.partitions import partitions_of
from cdc_tasks.broker.rabbitmq.queues import existing_queue
from cdc_tasks.broker.redis.message_groups import LENGTHS, held_up_key, next_list
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from cdc_tasks.totals import TOTALS, parse
from listener.control.backfills import BackfillStore
from listener.control.control import ControlState
from listener.core.source_status import SourceStatus
from listener.daemon.database_url import DatabaseType
from listener.daemon.settings import ListenerSettings
from listener.daemon.status import ask_saved_position
from listener.metrics.meter import ENQUEUED, Meter
from listener.metrics.queue_ages import QueueAges
from listener.metrics.samples import QueueSample, StoreSample, WorkerSample
from listener.publish.redis.connection import Command, RedisConnection, broker_channel
from listener.publish.task_message import make_message

__all__ = ["RabbitQueues", "RedisQueues", "StoreReader", "WorkerReader", "queues_of", "source_reader"]

_HELD_ON_RABBITMQ: Final = "cdc:held-keys"
_DEAD_LETTERS: Final = "cdc:dead-letters:by-task"
_MOST_TASKS: Final = 200  # with their own number: a message from anyone may name any task
_OTHERS: Final = "(others)"


class StoreReader:
    """Reads the data stored with the checkpoint."""

    def __init__(self, redis: RedisConnection, name: str, *, is_broker: bool) -> None:
        """`name` is CDC_NAME; `is_broker`: this Redis is the broker, else the cache."""
        self._redis = redis
        self._name = name
        self._control = ControlState(redis, name)
        self._backfills = BackfillStore(redis, name)
        held: Command = (
            ("SCARD", held_up_key(redis.prefixed("")))
            if is_broker
            else ("HLEN", redis.prefixed(_HELD_ON_RABBITMQ))
        )
        self._held = held

    def __call__(self) -> StoreSample:
        saved = ask_saved_position(self._redis, self._name)
        self._control.read()
        (held,) = self._redis.ask([self._held])
        return StoreSample(
            position=saved.position,
            as_of=saved.as_of,
            parked=saved.parked,
            has_full_queue=saved.pause is not None,
            awaits_commit=saved.commit_wait is not None,
            set_aside=saved.set_aside,
            paused_routes=frozenset(self._control.paused_routes),
            reloads=self._control.reloads,
            backfills=Counter(each.state for each in self._backfills.read()),
            held_keys=int(held),
        )

    def close(self) -> None:
        self._redis.close()


class WorkerReader:
    """Reads the workers' counters, in the Redis with the dead letters."""

    def __init__(self, redis: RedisConnection) -> None:
        self._redis = redis

    def __call__(self) -> WorkerSample:
        letters, totals = self._redis.ask(
            [("HGETALL", self._redis.prefixed(key)) for key in (_DEAD_LETTERS, TOTALS)]
        )
        return WorkerSample(
            dead_letters=_bounded(_numbers(letters)),
            totals={parse(name): number for name, number in _numbers(totals).items()},
        )

    def close(self) -> None:
        self._redis.close()


def _numbers(answer: Any) -> dict[str, int]:
    """Return the fields of an HGETALL reply: a dict in RESP3, a list in RESP2."""
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {name.decode(errors="replace"): int(value) for name, value in pairs}


def _bounded(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the largest, and the others as one."""
    names = sorted(numbers, key=lambda name: (-numbers[name], name))
    found = {name: numbers[name] for name in names[:_MOST_TASKS]}
    if others := sum(numbers[name] for name in names[_MOST_TASKS:]):
        found[_OTHERS] = others
    return found


# --- Queues ---------------------------------------------------------------------------------------------


def queues_of(app: Celery, routes: Sequence[Route]) -> dict[str, list[Route]]:
    """Return the queues of the settings and the routes, each with the routes whose tasks go there.

    Celery's default queue, which others may also use, is included only if a route's tasks go there.
    """
    needed: dict[str, list[Route]] = {}
    for route in routes:
        if (queue := _queue_of(app, route)) is not None:
            needed.setdefault(queue, []).append(route)
    return {name: needed.get(name, []) for name in [*own_queues(app, needed), *needed]}


def _queue_of(app: Celery, route: Route) -> str | None:
    try:
        options = make_message(app, route).options
    except CDCError:  # the listener gets it too, and reports it
        return None
    return str(options["queue"].name) if "queue" in options else None


class RedisQueues:
    """Reads the lengths of the Redis lists, and the oldest message of each."""

    def __init__(self, app: Celery, queues: Mapping[str, Sequence[Route]], ages: QueueAges) -> None:
        self._redis = RedisConnection.of_broker(app)
        self._app = app
        self._queues = queues
        self._ages = ages
        self._lists: dict[str, list[str]] = {}  # queue -> its lists, one per priority

    def __call__(self) -> QueueSample:
        lists = self._lists or self._look_up_lists()
        self._lists = lists
        places = [place for each in lists.values() for place in each]
        waiting = [self._redis.prefixed(next_list(place)) for place in places]
        keys = [*map(self._redis.prefixed, places), *waiting]
        answers = self._redis.ask(
            [
                *(("LLEN", key) for key in keys),
                *(("LINDEX", key, "-1") for key in keys),
                ("HMGET", self._redis.prefixed(LENGTHS), *map(self._redis.prefixed, places)),
            ]
        )
        sizes = dict(zip(keys, answers[: len(keys)], strict=True))
        heads = dict(zip(keys, answers[len(keys) : -1], strict=True))
        for_keys = {place: int(number or 0) for place, number in zip(places, answers[-1], strict=True)}
        lengths, ages = dict[str, int](), dict[str, float]()
        for queue, its in lists.items():
            mine = [self._redis.prefixed(name) for place in its for name in (place, next_list(place))]
            lengths[queue] = sum(sizes[key] for key in mine) + sum(for_keys[place] for place in its)
            ages[queue] = max(self._ages.of_head(key, sizes[key], _id_of(heads[key])) for key in mine)
        return QueueSample(lengths=lengths, ages=ages)

    def close(self) -> None:
        self._redis.close()

    def _look_up_lists(self) -> dict[str, list[str]]:
        with broker_channel(self._app) as channel:
            place = channel._q_for_pri  # noqa: SLF001 - kombu's lists of a queue
            return {queue: [place(queue, step) for step in channel.priority_steps] for queue in self._queues}


def _id_of(message: bytes | None) -> str | None:
    """Return a task's id; empty if the message is not a task."""
    if message is None:
        return None
    try:
        return str(orjson.loads(message)["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return ""


class RabbitQueues:
    """Queries RabbitMQ, or another broker of kombu, for the lengths of the queues."""

    def __init__(
        self, app: Celery, queues: Mapping[str, Sequence[Route]], ages: QueueAges, meter: Meter
    ) -> None:
        self._app = app
        self._routes = {queue: {route.id for route in routes} for queue, routes in queues.items()}
        self._ages = ages
        self._meter = meter
        keyed = [route.id for routes in queues.values() for route in routes if route.key is not None]
        for partition in partitions_of(app) if keyed else ():
            self._routes.setdefault(partition, set())
        self._stack = ExitStack()
        self._connection: Any = None

    def __call__(self) -> QueueSample:
        try:
            return self._sample(self._connection or self._connect())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection = None
        self._stack.close()

    def _connect(self) -> Any:
        kombu = self._stack.enter_context(self._app.connection_for_write())
        kombu.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        self._connection = kombu.connection
        return self._connection

    def _sample(self, connection: Any) -> QueueSample:
        published = Counter[str]()
        for (route, _), number in dict(self._meter.published).items():
            published[route] += number
        lengths, ages = dict[str, int](), dict[str, float]()
        for queue, routes in self._routes.items():
            found = existing_queue(connection, queue)
            if found is None:
                continue
            lengths[queue] = length = int(found.message_count)
            sent = sum(published[route] for route in (*routes, ENQUEUED))
            ages[queue] = self._ages.of_length(queue, length, sent)
        return QueueSample(lengths=lengths, ages=ages)


def source_reader(
    settings: ListenerSettings, position: Callable[[], str | None]
) -> tuple[Callable[[], SourceStatus], Callable[[], None]]:
    """Return a query of the database's position, and what ends its session; `position` is the checkpoint."""
    gauge: Any
    if settings.database_type is DatabaseType.MYSQL:
        from listener.daemon.mysql_parts import make_binlog_gauge

        gauge = make_binlog_gauge(settings)
    else:
        from listener.daemon.postgres_parts import make_wal_gauge

        gauge = make_wal_gauge(settings)
    return lambda: gauge.read(position()), gauge.close
