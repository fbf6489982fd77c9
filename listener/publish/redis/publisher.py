"""Tasks to Redis or Valkey: a batch and its checkpoint are one atomic step, so each task is stored exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

import orjson
from celery import Celery

from cdc_tasks.broker.redis.message_groups import LENGTHS
from cdc_tasks.changes import Context
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import GROW, PAUSE, SET_ASIDE, Call, Parked, Route
from listener.core.publisher import CheckpointMovedError, StoppedError
from listener.core.retry import Retry
from listener.core.source import Saved
from listener.publish.batching import Batcher
from listener.publish.checkpoint import Checkpoint
from listener.publish.parked import log_parked, parked_key, store_parked, without_unfit
from listener.publish.queue_limit import Load, QueueLimit, pause_key
from listener.publish.redis.connection import Command, RedisConnection, too_large
from listener.publish.redis.envelope import Envelope, Envelopes, Keyed
from listener.publish.redis.keyed_pushes import KeyedPushes
from listener.publish.redis.set_aside import SetAside, set_aside_key
from listener.publish.spans import Spans
from listener.publish.task_message import EnvelopeError

__all__ = ["RedisPublisher"]

_LOOK_EVERY = 0.2  # seconds between two checks of a queue that is too long
_CHECK_EVERY = 1.0  # seconds without a write until the publisher checks that the broker still has its data
_OVERHEAD = 10_000  # bytes in a message in addition to the arguments, which are in base64
_MOST_KEYS = 10_000  # keys to remember, besides those of a batch
_AT_ONCE = 50  # messages in a command: the broker reads one while we create the next


class RedisPublisher:
    """Publishes to the Redis of Celery's own broker settings."""

    def __init__(
        self,
        app: Celery,
        *,
        name: str,
        durability: str = "memory",
        coalesce_interval: float = 0.5,
        batch_wait: float = 1.0,
        max_queue: int | None = None,
        max_set_aside: int | None = None,
        max_parked: int | None = None,
        spans: Spans | None = None,
    ) -> None:
        """Take the values of the settings of the same names, without `CDC_`; times are in seconds."""
        self._redis = RedisConnection.of_broker(app)
        self._retry = Retry("broker")
        self._checkpoint = Checkpoint(self._redis, self._retry, name=name, durability=durability)
        prefix = self._redis.prefixed(f"cdc:{name}")
        self._parked_key = parked_key(prefix)
        self._deferred_key = f"{prefix}:held"
        self._batcher = Batcher(self._deferred_key, interval=coalesce_interval, longest=batch_wait)
        self._limit = QueueLimit(
            max_queue, self._redis, pause_key(prefix), self._retry, look_every=_LOOK_EVERY
        )
        self._set_aside_key = set_aside_key(prefix)
        self._set_aside = SetAside(prefix, max_queue=max_queue, key_prefix=self._redis.prefixed(""))
        self._max_set_aside = max_set_aside
        self._max_parked = max_parked
        self._spans = spans
        self._policies: dict[str, set[str]] = defaultdict(
            set
        )  # queue -> its routes' policies for a full queue
        self._asked: list[str] = []  # the keys whose lengths the step in flight queries
        self._lengths: dict[str, int] = {}  # of those keys
        self._checked_at = 0.0
        self._is_consistent = False  # the deferred calls match the checkpoint in Redis, now or soon
        self._parked: list[Parked] = []  # with the batch in flight
        self._refused: list[Parked] = []  # in the same batch: messages too large for Redis
        self._envelopes = Envelopes(app)
        self._busy: set[str] = set()  # keys of messages: their next ones will probably wait
        self._met: set[str] = set()  # keys of the messages in flight

    @property
    def retries(self) -> Sequence[Retry]:
        """See `Publisher.retries`."""
        return (self._retry,)

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds; see `Publisher.read_checkpoint`."""
        self._end_flight()
        return self._checkpoint.read()

    def attach(self, source: str) -> str | None:
        """Prepare to publish; see `Publisher.attach`."""
        self._end_flight()
        self._envelopes.forget()  # a restarted broker may have lost its queue bindings
        self._policies.clear()
        return self._retry.call(lambda: self._attach(source))

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,
        notes: str | None = None,
        also: Sequence[Command] = (),
        before: Callable[[], None] | None = None,
    ) -> str | None:
        """Store these tasks, the parked changes and the checkpoint in the broker, in one atomic step."""
        self._is_consistent = False
        tasks, parked, saving = self._batcher.batch(fired)
        if also:
            saving = [*saving, *also]
        self.flush()
        is_due = tasks or parked or saving or self._set_aside.is_due
        if is_due or checkpoint != self._checkpoint.confirmed or notes is not None:
            try:
                self._start(tasks, saving, checkpoint, as_of, notes, parked=parked, before=before)
            except EnvelopeError:
                tasks, unfit = without_unfit(tasks, lambda call: self._envelope(call.route, call.change.kind))
                if not unfit:
                    raise
                parked = [*parked, *unfit]
                self._start(tasks, saving, checkpoint, as_of, notes, parked=parked, before=before)
            self._parked = parked
        else:
            self._look_now_and_then()
        self._is_consistent = True
        return self._checkpoint.confirmed if pipelined else self.flush()

    def flush(self) -> str | None:
        """Wait for the batch in flight; see `Publisher.flush`."""
        parked, self._parked = self._parked, []
        try:
            lengths = self._checkpoint.flush()
        except BaseException as error:
            self._is_consistent, self._refused = False, []
            if self._spans is not None:
                self._spans.end(error)
            raise
        if self._spans is not None:
            self._spans.end()
        refused, self._refused = self._refused, []
        if parked or refused:
            log_parked([*parked, *refused])
            self._limit.wait_for_room(self._retry.call(self._parked_load), self._parked_load)
        if refused:
            self._redis.close()  # the next connection reads whether the limit has been raised
        self._limit.wait_for_room(self._learn(lengths), self._load_now)
        return self._checkpoint.confirmed

    def room(self, routes: Sequence[Route], kind: tuple[str, str, str], most: int) -> int:
        """Return how many tasks of each route a backfill may send now; see `Publisher.room`."""
        if self._limit.max_queue is None:
            return most
        self.flush()
        keys = {key for route in routes if route.on_full != GROW for key in self._envelope(route, kind).keys}
        self._learn(self._retry.call(lambda: self._checkpoint.ask(self._length_queries())))
        longest = max((self._lengths.get(key, 0) for key in keys), default=0)
        return max(0, min(most, self._limit.max_queue // 2 - longest))

    def pause(self, routes: Collection[str]) -> None:
        """Set aside only the tasks of these routes; see `Publisher.pause`."""
        self.flush()
        self._set_aside.pause(routes)

    def drop_set_aside(self, route: str) -> int:
        """Drop the tasks of a paused route that were set aside; see `Publisher.drop_set_aside`."""
        position = self.flush()
        keys, drops = self._set_aside.drop(route)
        if not keys or position is None:
            return 0
        count = sum(self._checkpoint.ask([("LLEN", key) for key in keys]))
        self._start([], drops, position)
        self.flush()
        return int(count)

    def stop(self) -> None:
        """Make a waiting call raise StoppedError soon."""
        self._retry.stop()

    def close(self) -> None:
        """Release the broker; after `stop`, first send deferred tasks if the broker is available."""
        if self._retry.is_stopped and self._is_consistent:
            with suppress(CDCError, StoppedError):  # it is saved, and is sent after the next start
                self._hand_over()
        self._envelopes.close()
        self._redis.close()

    def _hand_over(self) -> None:
        position = self.flush()
        tasks, _, saving = self._batcher.release_all()
        if tasks and position is not None:
            self._start(tasks, saving, position)
            self.flush()

    def _end_flight(self) -> None:
        """Wait for the batch in flight; another listener's checkpoint is read afterwards."""
        with suppress(CheckpointMovedError):
            self.flush()

    def _start(
        self,
        tasks: list[Call],
        saving: list[Command],
        checkpoint: str,
        as_of: datetime | None = None,
        notes: str | None = None,
        *,
        parked: Sequence[Parked] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        envelopes = self._envelopes_of(tasks)
        self._remember_keys()
        self._checked_at = monotonic()  # the step checks too
        moves = list(self._set_aside.commands())  # as they are now, even if the step has to be sent again
        self._checkpoint.start(
            lambda: chain(
                self._pushes(tasks, envelopes), moves, saving, self._parkings(parked), _awaited(before)
            ),
            checkpoint,
            as_of,
            queries=self._length_queries(),
            notes=notes,
        )

    def _remember_keys(self) -> None:
        """Remember the keys of messages. Not while a step is created: it may have to be created again, identically."""
        if len(self._busy) > _MOST_KEYS:
            self._busy.clear()
        self._busy |= self._met
        self._met = set()

    def _pushes(self, tasks: Sequence[Call], envelopes: Sequence[Envelope]) -> Iterator[Command]:
        """Yield the commands that put the tasks into their queues; add those that Redis would refuse to `_refused`."""
        self._refused, self._met = [], set()
        pushes = _Pushes(
            max_bytes=self._redis.max_bytes,
            refused=self._refused,
            beside=self._set_aside if self._set_aside.is_used else None,
            prefix=self._redis.prefixed(""),
            busy=self._busy,
            met=self._met,
            spans=self._spans,
        )
        return pushes.commands(tasks, envelopes)

    def _parkings(self, parked: Sequence[Parked]) -> Iterator[Command]:
        """Yield the commands that park these, and those that `_pushes` has refused."""
        yield from store_parked(self._parked_key, [*parked, *self._refused], max_bytes=self._redis.max_bytes)

    def _look_now_and_then(self) -> None:
        """Detect that the broker lost its data even if the database is idle: its tasks have to be published again."""
        if monotonic() - self._checked_at >= _CHECK_EVERY:
            self._checked_at = monotonic()
            self._checkpoint.look()

    def _length_queries(self) -> list[Command]:
        queues = () if self._limit.max_queue is None else self._envelopes.queues
        self._asked = list(dict.fromkeys([*queues, *self._set_aside.keys]))
        lengths: list[Command] = [("LLEN", key) for key in self._asked]
        return [*lengths, ("HMGET", self._redis.prefixed(LENGTHS), *self._asked)] if lengths else []

    def _learn(self, answers: Sequence[Any]) -> Load:
        """Store the lengths of the queues; return the load that makes the listener wait."""
        if not answers:
            return Load()
        # A message that waits for its key also counts for its queue.
        *lengths_of_lists, waiting = answers
        found = (length + int(more or 0) for length, more in zip(lengths_of_lists, waiting, strict=True))
        self._lengths = lengths = dict(zip(self._asked, found, strict=True))
        policies = self._policies
        self._set_aside.learn(lengths, [key for key in policies if SET_ASIDE in policies[key]])
        return max(self._loads(lengths), key=_excess, default=Load())

    def _loads(self, lengths: Mapping[str, int]) -> Iterator[Load]:
        for key, policies in self._policies.items():
            if PAUSE in policies:
                yield Load(lengths.get(key, 0), self._limit.max_queue)
        yield Load(self._set_aside.longest, self._max_set_aside, "CDC_MAX_SET_ASIDE")

    def _parked_load(self) -> Load:
        (parked,) = self._checkpoint.ask([("HLEN", self._parked_key)])
        return Load(parked, self._max_parked, "CDC_MAX_PARKED")

    def _load_now(self) -> Load:
        """Move messages that have room, and check again; the listener pauses meanwhile."""
        position = self._checkpoint.confirmed
        if self._set_aside.is_due and position is not None:
            self._start([], [], position)
            return self._learn(self._checkpoint.flush())
        return self._learn(self._checkpoint.ask(self._length_queries()))

    def _attach(self, source: str) -> str | None:
        """Read the checkpoint and a previous listener's deferred tasks, on the connection that watches it."""
        position = self._checkpoint.attach(source)
        ask = self._redis.ask
        deferred, set_aside = ask([("HVALS", self._deferred_key), ("HGETALL", self._set_aside_key)])
        self._set_aside.restore(name.decode() for name in sorted(_fields(set_aside)))
        self._batcher.max_bytes = (self._redis.max_bytes - _OVERHEAD) * 3 // 4
        self._batcher.restore(deferred, lambda key: ask([("LRANGE", key, "0", "-1")])[0])
        self._is_consistent = True
        return position

    def _envelopes_of(self, tasks: Iterable[Call]) -> list[Envelope]:
        """Return each task's envelope. They are created before anything is written, because that needs the broker."""
        envelopes = []
        last: tuple[Route, tuple[str, str, str]] | None = None
        for task in tasks:
            route, kind = task.route, task.change.kind
            if last is None or route is not last[0] or kind is not last[1]:  # most are like the previous one
                envelope, last = self._envelope(route, kind), (route, kind)
            envelopes.append(envelope)
        return envelopes

    def _envelope(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        made = self._envelopes.made.get((route.sent_as, kind))
        if made is None:
            made = self._retry.call(partial(self._envelopes.of, route, kind))
            for key in made.keys:
                self._policies[key].add(route.on_full)
        return made


def _awaited(before: Callable[[], None] | None) -> Iterator[Command]:
    """Yield no command; call `before` when the preceding ones have been created."""
    if before is not None:
        before()
    yield from ()


def _excess(load: Load) -> float:
    """Return the excess."""
    return 0.0 if load.limit is None else load.length / load.limit


def _fields(answer: Any) -> Iterable[bytes]:
    """Return the fields of an HGETALL reply: a dict in RESP3, a list in RESP2."""
    return answer if isinstance(answer, dict) else answer[::2]


@dataclass(slots=True, kw_only=True)
class _Pushes:
    """The commands that store tasks as Celery would. They are created while they are being sent."""

    max_bytes: int  # Redis closes the connection at a larger message
    refused: list[Parked]  # messages that are larger
    beside: SetAside | None  # selects messages to set aside; None: none
    prefix: str
    busy: Collection[str]  # keys of earlier messages
    met: set[str]  # keys of these messages
    spans: Spans | None  # of the transactions; None: tracing is off

    def commands(self, tasks: Sequence[Call], envelopes: Sequence[Envelope]) -> Iterator[Command]:
        """Yield them; a message with a key goes to its queue if its key is free."""
        expiries: dict[Command, None] = {}
        keyed = KeyedPushes(self.prefix, self.busy, self.met, max_bytes=self.max_bytes)
        last: Context | None = None
        said = b""
        for start in range(0, len(tasks), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            queues: dict[str, list[bytes]] = defaultdict(list)
            for task, envelope in zip(tasks[part], envelopes[part], strict=True):
                route, change, arguments, kwargs, key = task
                keys, more, render, of_key, in_context = envelope
                if more:
                    expiries.update(dict.fromkeys(more))
                context = change.commit.context
                if context is not last:  # most are like the previous one
                    said, last = self._said(change, context), context
                if key is not None:
                    of_key = of_key if context is None else in_context.keyed(said)
                    put = self._put_beside(task, key, keys, of_key, queues) if self.beside is not None else 0
                    length = put or keyed.add(task, key, keys[0], of_key)
                    if length > self.max_bytes:
                        self._refuse(task, length)
                    continue
                message = (
                    render(arguments, kwargs, *change.stamp)
                    if context is None
                    else in_context.render(said, arguments, kwargs, *change.stamp)
                )
                if len(message) > self.max_bytes:
                    self._refuse(task, len(message))
                    continue
                for name in keys if self.beside is None else self._targets(route, keys):
                    queues[name].append(message)
            yield from self._commands(queues)
            if keyed.is_due or queues:  # messages for the same queue stay together
                yield from keyed.commands()
        yield from keyed.commands()
        yield from expiries

    def _targets(self, route: Route, keys: Sequence[str]) -> list[str]:
        """Return the lists for its messages: those of the queues, or those for messages set aside."""
        return [name if self.beside is None else self.beside.target(route, name) for name in keys]

    def _said(self, change: Any, context: Context | None) -> bytes:
        """Return the context for the message, followed by the headers that name its trace."""
        if context is None:
            return b""
        if self.spans is None or not (headers := self.spans.headers(change)):
            return context.json
        return b"%b,%b" % (context.json, orjson.dumps(headers)[1:-1])

    def _put_beside(
        self, task: Call, key: str, keys: tuple[str, ...], of_key: Keyed, queues: Mapping[str, list[bytes]]
    ) -> int:
        """Set a message with a key aside unless it is too long; return its length, 0 if it is not set aside.

        When it moves to the queue, it takes its place among those of its key.
        """
        (queue,) = keys
        name = queue if self.beside is None else self.beside.target(task.route, queue)
        if name == queue:
            return 0
        message = of_key.render(task.arguments, task.kwargs, *task.change.stamp, key)
        if len(message) <= self.max_bytes:
            queues[name].append(message)
        return len(message)

    def _commands(self, queues: Mapping[str, list[bytes]]) -> Iterator[Command]:
        for name, messages in queues.items():
            yield "LPUSH", name, *messages
        if self.beside is not None:
            yield from self.beside.index(queues)

    def _refuse(self, task: Call, length: int) -> None:
        route, change, arguments, kwargs, key = task
        self.refused.append(Parked(route, change, too_large(length, self.max_bytes), arguments, kwargs, key))
