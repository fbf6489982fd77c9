"""Observes effects: tasks by Celery's events, messages at the inbox, keys of the cache by Redis."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import redis

from cdc_tasks.errors import CDCError
from demo.inbox import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

__all__ = ["CacheChanged", "Message", "Observation", "Observer", "TaskEnded", "TaskReceived"]

_PREFIX = "master:"
_INVALIDATIONS = (
    "__redis__:invalidate"  # the channel on which a server announces changed keys to a RESP2 client
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReceived:
    """A worker has received a task."""

    id: str
    name: str
    arguments: str  # as Flower shows them: without row data


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """A task has ended, or waits for its next attempt."""

    id: str
    name: str
    state: str  # SUCCESS, FAILURE, RETRY
    outcome: str  # its result or its error
    seconds: float | None  # of its run; None if it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChanged:
    """A key of the master cache has changed."""

    key: str
    before: str | None  # JSON; None: no such key
    after: str | None
    at: float  # time.monotonic() when Redis announced it


class ObserverError(CDCError):
    """The broker or the cache does not answer."""


Observation = TaskReceived | TaskEnded | CacheChanged | Message


class Observer:
    """Returns observations in their order; the inbox adds the messages."""

    def __init__(
        self,
        app: Celery,
        cache_url: str,
        observations: queue.SimpleQueue[Observation],
        see: Callable[[Observation], None],
    ) -> None:
        """`see` is called with each observation, and puts it into the queue."""
        self._observations = observations
        self._tasks = _TaskObserver(app, see)
        self._cache = _CacheObserver(cache_url, see)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            for each in (self._tasks, self._cache):
                thread = threading.Thread(target=each.watch, daemon=True)
                thread.start()
                cleanup.callback(thread.join, 5)
                cleanup.callback(each.stop)
                if not each.ready.wait(15):
                    raise ObserverError
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._cleanup.close()

    def next(self, timeout: float) -> Observation | None:
        """Return the next observation, or None if there is none for `timeout` seconds."""
        try:
            return self._observations.get(timeout=timeout)
        except queue.Empty:
            return None


class _TaskObserver:
    """Reads the events of the workers, as Flower does."""

    def __init__(self, app: Celery, see: Callable[[Observation], None]) -> None:
        self._app = app
        self._see = see
        self._names: dict[str, str] = {}
        self._receiver: Any = None  # Celery's, which has no types
        self._stopped = False
        self.ready = threading.Event()

    def watch(self) -> None:
        broker_lost: Any = self._app.connection_for_read().recoverable_connection_errors
        while not self._stopped:
            try:
                self._capture()
            except (OSError, *broker_lost):
                time.sleep(0.2)

    def stop(self) -> None:
        self._stopped = True
        if self._receiver is not None:
            self._receiver.should_stop = True

    def _capture(self) -> None:
        handlers = {
            "task-received": self._received,
            "task-succeeded": self._succeeded,
            "task-failed": self._failed,
            "task-retried": self._retried,
        }
        with self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers=handlers)
            self._receiver.on_consume_ready = lambda *_positional, **_named: self.ready.set()
            self._receiver.should_stop = self._stopped
            self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _received(self, event: dict[str, Any]) -> None:
        self._names[event["uuid"]] = event["name"]
        self._see(TaskReceived(id=event["uuid"], name=event["name"], arguments=event["args"]))

    def _succeeded(self, event: dict[str, Any]) -> None:
        self._ended(event, "SUCCESS", event["result"].strip("'\""), event["runtime"])

    def _failed(self, event: dict[str, Any]) -> None:
        self._ended(event, "FAILURE", event["exception"], None)

    def _retried(self, event: dict[str, Any]) -> None:
        self._ended(event, "RETRY", event["exception"], None)

    def _ended(self, event: dict[str, Any], state: str, outcome: str, seconds: float | None) -> None:
        name = self._names.get(event["uuid"], "a task")
        self._see(TaskEnded(id=event["uuid"], name=name, state=state, outcome=outcome, seconds=seconds))


class _CacheObserver:
    """Subscribes to changes of the master cache's keys in Redis, without polling."""

    def __init__(self, url: str, see: Callable[[Observation], None]) -> None:
        self._redis: Any = redis.Redis.from_url(url, protocol=2)  # half of redis-py has no types
        self._see = see
        self._values: dict[str, str | None] = {}
        self._stopped = False
        self.ready = threading.Event()

    def watch(self) -> None:
        while not self._stopped:
            try:
                self._follow()
            except redis.ConnectionError:
                time.sleep(0.2)

    def stop(self) -> None:
        self._stopped = True

    def _follow(self) -> None:
        """Follow one connection until it breaks; https://redis.io/docs/latest/develop/reference/client-side-caching."""
        with self._redis.pubsub() as subscription, self._redis.client() as tracking:
            subscription.execute_command("CLIENT", "ID")
            client_id = subscription.parse_response()
            subscription.subscribe(_INVALIDATIONS)
            tracking.execute_command(
                "CLIENT", "TRACKING", "ON", "REDIRECT", client_id, "BCAST", "PREFIX", _PREFIX
            )
            self._catch_up()
            while not self._stopped:
                message = subscription.get_message(ignore_subscribe_messages=True, timeout=0.2)
                if message is not None:
                    keys = message["data"]  # None: all of them, by FLUSHALL
                    changed = list(self._values) if keys is None else [key.decode() for key in keys]
                    self._compare(changed, time.monotonic())

    def _catch_up(self) -> None:
        """Read all keys; report differences, except the first time."""
        keys = [key.decode() for key in self._redis.scan_iter(f"{_PREFIX}*")]
        if self.ready.is_set():
            return self._compare({*keys, *self._values}, time.monotonic())
        self._values = {key: self._read(key) for key in keys}
        return self.ready.set()

    def _compare(self, keys: Iterable[str], at: float) -> None:
        for key in keys:
            before, after = self._values.get(key), self._read(key)
            if before != after:
                self._values[key] = after
                self._see(CacheChanged(key=key, before=before, after=after, at=at))

    def _read(self, key: str) -> str | None:
        value = self._redis.get(key)
        return value.decode() if isinstance(value, bytes) else None
