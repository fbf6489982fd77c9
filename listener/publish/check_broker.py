"""Checks that broker and cache are available and keep their data, and that workers take the tasks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import redis
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu import Connection
from redis.exceptions import ResponseError

from cdc_tasks.broker.other_workers import foreign_workers, queues_taken, unacked_by_kombu
from cdc_tasks.broker.queues import OLD_NAMES, own_queues
from cdc_tasks.broker.rabbitmq.partitions import counted_queue, partitions_of
from cdc_tasks.broker.redis.acl import missing_for_listener
from cdc_tasks.config.required_settings import weakened
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import is_foreign
from cdc_tasks.routing.router import PAUSE, Route
from cdc_tasks.versions import lacking_parts
from cdc_tasks.words import counted
from listener.core.findings import CloseNames, Finding, State, finding_from
from listener.core.publisher import BrokerAwayError
from listener.publish.bookmark import bookmark_key, read_bookmark
from listener.publish.check_queues import check_queues, consumers_of
from listener.publish.kombu.internals import check_kombu
from listener.publish.kombu.message import partition_of
from listener.publish.redis.connection import Command, RedisConnection, address_of, broker_channel
from listener.publish.task_message import check_plain, make_message

__all__ = ["check_bookmark", "check_broker", "check_cache", "redis_info"]

_AWAY: Final = "Start it, or correct {variable}."
_UPGRADE: Final = "pip install --upgrade 'celery>=5.7,<5.8'"
_ANSWER_WITHIN: Final = 1.0  # seconds in which workers answer


def check_broker(
    app: Celery, routes: Sequence[Route], *, durability: str, max_queue: int | None = None
) -> Iterator[Finding]:
    """Yield the findings; never raises CDCError. `max_queue` is CDC_MAX_QUEUE."""
    yield from _check_messages(app, routes)
    if max_queue is None:
        yield from _check_policies(routes)
    yield from _check_kombu()
    yield from _check_parts(app)
    yield from _check_settings(app)
    with app.connection_for_write() as connection:
        address = connection.as_uri()  # without the password
        alternatives = list(connection.alt)
        is_redis = connection.transport.driver_type == "redis"
        is_rabbitmq = connection.transport.driver_type == "amqp"
        problem = _reach_redis(app) if is_redis else _reach(connection, address_of(app))
    if problem:
        yield problem
        return
    if len(alternatives) > 1:
        yield from _check_each(app, alternatives)
    else:
        yield Finding(what="broker", code="broker", found=address)
    if is_redis:
        if lacking := _lacking_rights(app, routes):
            yield lacking
            return
        yield from _check_redis(app, durability)
        yield from _check_kombus_unacked(app, routes)
    elif durability != "memory":
        found, hint = (
            f"CDC_DURABILITY={durability} is for a Redis broker",
            "Take CDC_DURABILITY out of the environment.",
        )
        yield Finding(what="durability", state=State.PROBLEM, code="durability", found=found, hint=hint)
    keyed = [route for route in routes if route.key is not None] if is_rabbitmq else []
    others = [route for route in routes if route not in keyed]
    if is_rabbitmq:
        names = dict.fromkeys(filter(None, (_queue_of(app, route) for route in others)))
        yield from check_queues(app, [app.amqp.queues[name] for name in names])
    if keyed:
        yield from _check_partitions(app, keyed)
    yield from _check_workers(app, routes, elsewhere=keyed)


def _check_kombu() -> Iterator[Finding]:
    try:
        check_kombu()
    except CDCError as error:
        yield finding_from("kombu", error)


def _check_parts(app: Celery) -> Iterator[Finding]:
    """Yield what this Celery cannot do with the broker; the worker's log reports it too."""
    with app.connection_for_write() as connection:
        lacks = lacking_parts(connection.transport.driver_type)
    if lacks:
        yield Finding(
            what=f"celery {metadata.version('celery')}",
            state=State.WARNING,
            code="celery_version",
            found=" ".join(lacks),
            hint=_UPGRADE,
        )


def _check_settings(app: Celery) -> Iterator[Finding]:
    for lacking in weakened(app):
        yield Finding(
            what="celery settings",
            state=State.WARNING,
            code="celery_settings",
            found=lacking,
            hint=_cure(app),
        )


def _cure(app: Celery) -> str:
    if is_foreign(app):
        return f"Change that in the settings of the app {app.main}."
    if app.main not in {"listener", "cdc_tasks"}:
        return "Add to the app what finishes its tasks: cdc_tasks.install(app)"
    return "Start the module of CELERY_CONFIG_MODULE with: from cdc_tasks.config.celery import *"


def check_cache(url: str) -> Iterator[Finding]:
    """Yield whether the Redis of CACHE_URL answers."""
    try:
        _ask(RedisConnection.of_cache(url), ("PING",))
    except CDCError as error:
        yield _away("cache", error, "CACHE_URL")
    else:
        yield Finding(what="cache", code="cache", found="answers")


def _lacking_rights(app: Celery, routes: Sequence[Route]) -> Finding | None:
    """Return the permissions that the broker's user lacks; then no other check makes sense."""
    with broker_channel(app) as channel:
        client, prefix = redis.Redis(connection_pool=channel.pool), channel.global_keyprefix
        missing = missing_for_listener(client, own_queues(app, _needed(app, routes)), prefix=prefix)
    if missing is None:
        return None
    return Finding(
        what="broker's rights",
        state=State.PROBLEM,
        code="broker_rights",
        found=missing.found,
        hint=missing.hint,
    )


def _check_each(app: Celery, urls: Sequence[str]) -> Iterator[Finding]:
    """Yield whether each of several brokers answers: a failing one would not be noticed otherwise."""
    for url in urls:
        with app.connection_for_write(url) as connection:
            address = connection.as_uri()
            if problem := _reach(connection, address_of(app)):
                found = f"{address} does not answer: {problem.found}"
                yield Finding(
                    what="broker", state=State.WARNING, code=problem.code, found=found, hint=problem.hint
                )
            else:
                yield Finding(what="broker", code="broker", found=address)


def _reach(connection: Connection, where: str) -> Finding | None:
    errors: tuple[type[BaseException], ...] = (
        OSError,
        *connection.connection_errors,
        *connection.channel_errors,
    )
    try:
        connection.ensure_connection(
            max_retries=1, interval_start=0, timeout=5, reraise_as_library_errors=False
        )
        with connection.channel():  # for Redis, kombu connects only here
            return None
    except errors as error:
        return _away("broker", BrokerAwayError(f"{type(error).__name__}: {error}"), where)


def _reach_redis(app: Celery) -> Finding | None:
    try:
        _ask(RedisConnection.of_broker(app), ("PING",))
    except CDCError as error:
        return _away("broker", error, address_of(app))
    return None


def _away(what: str, error: CDCError, variable: str) -> Finding:
    return Finding(
        what=what,
        state=State.PROBLEM,
        code=f"{what}_away" if isinstance(error, BrokerAwayError) else error.code,
        found=error.message,
        hint=error.hint or _AWAY.format(variable=variable),
    )


def _ask(redis: RedisConnection, command: Command) -> Any:
    """Return the reply to one command, None if the server refuses it. Raise BrokerAwayError, BrokerError."""
    try:
        (answer,) = redis.send([command])
    finally:
        redis.close()
    return None if isinstance(answer, ResponseError) else answer


def _check_redis(app: Celery, durability: str) -> Iterator[Finding]:
    info = redis_info(RedisConnection.of_broker(app))
    if info.get("aof_enabled") == "0":
        yield Finding(
            what="broker's disk",
            state=State.PROBLEM if durability == "fsync" else State.WARNING,
            code="broker_disk",
            found="no append-only file: a restart of the broker loses the tasks in its queues",
            hint="redis-cli CONFIG SET appendonly yes   and: redis-cli CONFIG REWRITE",
        )
    elif info:
        yield Finding(what="broker's disk", code="broker_disk", found="append-only file")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            what="broker's memory",
            state=State.WARNING,
            code="broker_memory",
            found=f"{policy}: a full broker drops tasks",
            hint="redis-cli CONFIG SET maxmemory-policy noeviction   and: redis-cli CONFIG REWRITE",
        )
    elif info:
        yield Finding(what="broker's memory", code="broker_memory", found=policy)
    yield from _check_durability(app, info, durability)


def redis_info(redis: RedisConnection) -> Mapping[str, str]:
    """Return the fields of INFO, none if INFO is not allowed. Raise BrokerAwayError, BrokerError."""
    lines = (_ask(redis, ("INFO",)) or b"").decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _check_durability(app: Celery, info: Mapping[str, str], durability: str) -> Iterator[Finding]:
    what = f"CDC_DURABILITY={durability}"
    if durability == "fsync" and not _knows(app, "WAITAOF"):
        found, hint = (
            "the broker has no WAITAOF",
            "Upgrade to Redis 7.2 or Valkey, or set CDC_DURABILITY=memory.",
        )
        yield Finding(what=what, state=State.PROBLEM, code="durability", found=found, hint=hint)
    elif durability == "replicated" and info.get("connected_slaves") == "0":
        found, hint = "the broker has no replica", "Start one with --replicaof, or set CDC_DURABILITY=memory."
        yield Finding(what=what, state=State.PROBLEM, code="durability", found=found, hint=hint)
    else:
        yield Finding(what=what, code="durability", found="supported")


def _knows(app: Celery, command: str) -> bool:
    answer = _ask(RedisConnection.of_broker(app), ("COMMAND", "INFO", command))
    return bool(answer and answer[0])


def _check_messages(app: Celery, routes: Sequence[Route]) -> Iterator[Finding]:
    """Find routes whose tasks could not be sent, for example to a queue that does not exist."""
    with app.connection_for_write() as connection:
        is_redis = connection.transport.driver_type == "redis"
    for route in routes:
        try:
            made = make_message(app, route)
            if is_redis:
                check_plain(app, route.task, made.options)
        except CDCError as error:
            yield finding_from(f"route to {route.task}", error)
            continue
        if route.queue and (queue := _queue_of(app, route)) not in {route.queue, None}:
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING,
                code="queue_renamed",
                found=f"names the queue {route.queue}, which is called {queue} now",
                hint=f'Write in the route: queue="{queue}"',
            )


def _check_policies(routes: Sequence[Route]) -> Iterator[Finding]:
    """Find policies for full queues that have no effect because no queue is ever full."""
    for route in routes:
        if route.on_full != PAUSE:
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING,
                code="on_full_without_limit",
                found=f'on_full="{route.on_full}" has no effect: CDC_MAX_QUEUE is not set, so no queue is ever full',
                hint="Set CDC_MAX_QUEUE to the number of messages at which a queue is full.",
            )


def _queue_of(app: Celery, route: Route) -> str | None:
    try:
        options = make_message(app, route).options
    except CDCError:
        return None
    return str(options["queue"].name) if "queue" in options else None


def _check_partitions(app: Celery, keyed: Sequence[Route]) -> Iterator[Finding]:
    """Find out whether RabbitMQ keeps the order of these routes' tasks, and whether a worker takes them."""
    partitions = partitions_of(app)
    try:
        for route in keyed:
            partition_of(list(partitions), route, "")
    except CDCError as error:
        yield finding_from(f"route to {route.task}", error)
        return
    yield from check_queues(app, partitions.values())
    counted_by = counted_queue(next(iter(partitions)))
    if not consumers_of(app, counted_by):
        yield Finding(
            what=f"queue {counted_by}",
            state=State.WARNING,
            code="no_consumer",
            found="no running worker takes tasks with a key",
            hint=f"celery -A {_named(app)} worker   or, if it names its queues: worker -Q {counted_by},…",
        )


def _check_workers(
    app: Celery, routes: Sequence[Route], *, elsewhere: Sequence[Route] = ()
) -> Iterator[Finding]:
    """Query the running workers; only a warning if there are none.

    Tasks of the routes `elsewhere` do not go to the queues named by these routes.
    """
    inspect = app.control.inspect(timeout=_ANSWER_WITHIN)
    try:
        registered = inspect.registered() or {}
    except AccessRefused as error:
        yield Finding(
            what="workers",
            state=State.WARNING,
            code="workers_not_asked",
            found=f"the query is not permitted: {error.reply_text}",
            hint="To permit it: rabbitmqctl set_permissions -p <vhost> <user> "
            r"'^(.*reply\.)?celery\.pidbox$' '^((.*reply\.)?celery\.pidbox|<exchange of the tasks>)$' '.*'",
        )
        return
    active = inspect.active_queues() or {} if registered else {}
    needed = _needed(app, [route for route in routes if route not in elsewhere])
    for foreign in foreign_workers(registered, active, own_queues(app, needed), needed):
        yield Finding(
            what=f"worker {foreign.who}",
            state=State.PROBLEM,
            code="foreign_worker",
            found=foreign.found,
            hint=foreign.hint,
        )
    taken = queues_taken(registered, active, needed)
    if not taken:
        found = (
            f"none of ours answers, {counted(len(registered), 'of others does', 'of others do')}"
            if registered
            else "none answers"
        )
        yield Finding(
            what="workers",
            state=State.WARNING,
            code="no_workers",
            found=found,
            hint=f"celery -A {_named(app)} worker",
        )
        return
    known = {task.partition(" ")[0] for tasks in registered.values() for task in tasks}
    findings = [*_check_tasks(routes, known), *_check_consumers(app, needed, taken)]
    yield from findings or [
        Finding(
            what="workers",
            code="workers",
            found=counted(len(registered), "knows all tasks of the routes", "know all tasks of the routes"),
        )
    ]


def _needed(app: Celery, routes: Sequence[Route]) -> dict[str, set[str]]:
    """Return the tasks that the routes send to each queue."""
    needed: dict[str, set[str]] = {}
    for route in routes:
        if (queue := _queue_of(app, route)) is not None:
            needed.setdefault(queue, set()).add(route.task)
    return needed


def _check_kombus_unacked(app: Celery, routes: Sequence[Route]) -> Iterator[Finding]:
    with broker_channel(app) as channel:
        client = redis.Redis(connection_pool=channel.pool)
        try:
            ours = [*own_queues(app, _needed(app, routes)), *OLD_NAMES]
            held = unacked_by_kombu(client, ours, prefix=channel.global_keyprefix)
        except redis.RedisError:  # not allowed, or not a hash: then it is not from kombu
            return
    if held is not None:
        yield Finding(
            what=f"broker's {held.who}",
            state=State.WARNING,
            code="kombu_unacked",
            found=held.found,
            hint=held.hint,
        )


def _check_tasks(routes: Sequence[Route], known: set[str]) -> Iterator[Finding]:
    close = CloseNames(known)
    for task in dict.fromkeys(route.task for route in routes):
        if task not in known:
            yield Finding(
                what=f"route to {task}",
                state=State.WARNING,
                code="unknown_task",
                found=f"no running worker knows this task.{close.meant(task)}",
                hint="Correct the route, or name the task's module in CDC_TASK_MODULES and restart the workers.",
            )


def _named(app: Celery) -> str:
    """Return the argument of `celery -A` for this app; for the listener's own app, that of cdc-tasks."""
    return "cdc_tasks" if app.main == "listener" else os.environ.get("CDC_APP", app.main)


def _check_consumers(app: Celery, queues: Iterable[str], taken: set[str]) -> Iterator[Finding]:
    for queue in queues:
        if queue not in taken:
            found, hint = "no running worker takes from it", f"celery -A {_named(app)} worker -Q {queue}"
            yield Finding(
                what=f"queue {queue}", state=State.WARNING, code="no_consumer", found=found, hint=hint
            )


# --- The bookmark ---------------------------------------------------------------------------------------


def check_bookmark(
    store: RedisConnection, cache_url: str, *, name: str, checkpoint: str | None
) -> Iterator[Finding]:
    """Yield whether a listener on a binlog still has its position if the broker loses its data.

    `store` has the `checkpoint` of CDC_NAME. Yield nothing if a server is unavailable: another finding reports it.
    """
    try:
        bookmark = read_bookmark(cache_url, name)
        infos = [redis_info(store), redis_info(RedisConnection.of_cache(cache_url))]
    except CDCError:
        return
    if bookmark and checkpoint is None:
        yield Finding(
            what="broker's data",
            state=State.WARNING,
            code="broker_lost_data",
            found=f"there is no checkpoint, but the bookmark is at {bookmark}: the broker has lost its data",
            hint="The listener continues there. If this is a first start: redis-cli -u CACHE_URL DEL "
            f"{bookmark_key(name)}",
        )
    is_one = len({info.get("run_id") for info in infos}) == 1
    if is_one and infos[0].get("aof_enabled") == "0":
        yield Finding(
            what="bookmark",
            state=State.WARNING,
            code="bookmark_not_durable",
            found="checkpoint and bookmark are in one Redis without an append-only file: if it loses both while no "
            "listener runs, the next listener reads only what is committed after its start",
            hint="redis-cli CONFIG SET appendonly yes   and: redis-cli CONFIG REWRITE   or another CACHE_URL",
        )
    elif infos[0]:
        yield Finding(what="bookmark", code="bookmark", found="survives a broker that loses its data")
