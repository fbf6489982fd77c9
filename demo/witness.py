"""Whoever sees what happens: tasks in Celery's events, messages at the inbox, keys of the cache in Redis."""

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

__all__ = ["CacheChanged", "Message", "Sighting", "TaskEnded", "TaskReceived", "Witness"]

_PREFIX = "master:"
_INVALIDATIONS = "__redis__:invalidate"  # where a server tells a RESP2 client which keys have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReceived:
    """A worker has taken a task off its queue."""

    id: str
    name: str
    arguments: str  # as Flower shows them: they name the change, and nothing of the row


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """A task is over, or waits for its next attempt."""

    id: str
    name: str
    state: str  # SUCCESS, FAILURE, RETRY
    outcome: str  # what it returned, or its error
    seconds: float | None  # that it ran; None where it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChanged:
    """A key of the master cache has another value."""

    key: str
    before: str | None  # JSON; None: there was no such key
    after: str | None
    at: float  # time.monotonic() when Redis said so


class WitnessError(CDCError):
    """The broker or the cache does not answer."""


Sighting = TaskReceived | TaskEnded | CacheChanged | Message


class Witness:
    """Hands out what was seen, in that order; messages are put in by the inbox."""

    def __init__(self, app: Celery, cache_url: str, sightings: queue.SimpleQueue[Sighting]) -> None:
        self._sightings = sightings
        self._tasks = _TaskWitness(app, sightings.put)
        self._cache = _CacheWitness(cache_url, sightings.put)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            for each in (self._tasks, self._cache):
                thread = threading.Thread(target=each.watch, daemon=True)
                thread.start()
                cleanup.callback(thread.join, 5)
                cleanup.callback(each.stop)
                if not each.ready.wait(15):
                    raise WitnessError
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._cleanup.close()

    def next(self, timeout: float) -> Sighting | None:
        """Return the next sighting, or None after `timeout` seconds without any."""
        try:
            return self._sightings.get(timeout=timeout)
        except queue.Empty:
            return None


class _TaskWitness:
    """Reads the events that workers send to Flower too."""

    def __init__(self, app: Celery, see: Callable[[Sighting], None]) -> None:
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


class _CacheWitness:
    """Lets Redis say which keys of the master cache have changed, the moment they do: no polling."""

    def __init__(self, url: str, see: Callable[[Sighting], None]) -> None:
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
        with self._redis.pubsub() as told, self._redis.client() as tracking:
            told.execute_command("CLIENT", "ID")
            told_id = told.parse_response()
            told.subscribe(_INVALIDATIONS)
            tracking.execute_command(
                "CLIENT", "TRACKING", "ON", "REDIRECT", told_id, "BCAST", "PREFIX", _PREFIX
            )
            self._catch_up()
            while not self._stopped:
                message = told.get_message(ignore_subscribe_messages=True, timeout=0.2)
                if message is not None:
                    keys = message["data"]  # None: all of them, by FLUSHALL
                    changed = list(self._values) if keys is None else [key.decode() for key in keys]
                    self._compare(changed, time.monotonic())

    def _catch_up(self) -> None:
        """Learn what is there, at first silently."""
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
