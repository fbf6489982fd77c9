"""Coalescing and batching: how calls become messages, and what is deferred.

A coalesced call is sent immediately. For the next `interval` seconds equal calls are deferred; one call at the end
replaces them. A batch is sent when it is full, or when its first change has waited `longest` seconds. What is
deferred is saved in Redis, in the same atomic step as the checkpoint, and read back at the start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

from cdc_tasks.changes import Context, EventType, KnownCommit
from cdc_tasks.routing.router import PAUSE, Call, Origin, Parked, Route, enqueued_route
from listener.core.publisher import BrokerError
from listener.core.source import IDLE_INTERVAL
from listener.publish.redis.connection import Command, too_large

__all__ = ["Batched", "Batcher", "batch_together", "record_of", "route_of"]

_MOST_OPEN = 10_000  # batches: with a key there is one for each; more are sent early
_MAX_BYTES = 1_000_000  # of arguments in a batch: wide rows make smaller batches

_CoalescedOn = tuple[str, bytes, bytes]  # the route's id, the arguments, the keyword arguments


class Batched(NamedTuple):
    """The result of batching some calls."""

    tasks: list[Call]
    parked: list[Parked]
    saving: list[Command]  # save what is deferred; they run with those of the checkpoint


@dataclass(slots=True)
class _OpenBatch:
    route: Route
    origin: Origin  # of the first change
    opened_at: float
    items: list[bytes] = field(default_factory=list)
    saved: int = 0  # how many of them are in Redis
    size: int = 0  # in bytes
    key: str | None = None  # of all its changes

    @property
    def name(self) -> str:
        """Identifies an open batch: its changes have one route and one key."""
        return self.route.id if self.key is None else _keyed_name(self.route, self.key)

    @property
    def is_full(self) -> bool:
        return len(self.items) == self.route.batch or self.size >= _MAX_BYTES

    def add(self, item: bytes) -> None:
        self.items.append(item)
        self.size += len(item)

    def to_call(self) -> Call:
        """Return the task. Its id has the first change and the number of changes, which may differ after a crash."""
        origin, more = self.origin, len(self.items) - 1
        if more:
            change_id, position = origin.stamp
            origin = Origin(origin.kind, (b"%b+%d" % (change_id, more), position))
        return Call(self.route, origin, b"[%b]" % b",".join(self.items), key=self.key)


class Batcher:
    """Coalesces and batches calls, across publishes and crashes."""

    def __init__(
        self, key: str, *, interval: float = 0.5, longest: float = 1.0, clock: Callable[[], float] = monotonic
    ) -> None:
        """`key`: the Redis hash of deferred calls; empty: nothing is saved. `interval` and `longest`: seconds."""
        self._key = key
        self._interval = interval
        self._longest = max(0.0, longest - IDLE_INTERVAL)  # the caller calls only once per IDLE_INTERVAL
        self._clock = clock
        self.max_bytes: int | None = None  # of arguments allowed in one message; None: unknown
        self._batches: dict[str, _OpenBatch] = {}  # in time order
        self._grown: dict[str, None] = {}  # batches with new changes in this step
        self._fired_at: dict[_CoalescedOn, float] = {}  # in time order
        self._waiting: dict[_CoalescedOn, Call] = {}

    def batch(self, fired: Iterable[Call | Parked]) -> Batched:
        """Return the messages of these calls, and the deferred ones that are due."""
        out, now = Batched([], [], []), self._clock()
        self._release(out, now)
        tasks, at_once = out.tasks, dict[_CoalescedOn, Call]()
        for each in fired:
            if isinstance(each, Parked):
                out.parked.append(each)
            elif not each.route.is_grouped:
                tasks.append(each)
            elif self._key and not self._fits(
                len(each.arguments) + len(each.kwargs)
            ):  # not even Redis would save it
                out.parked.append(self._refused(each))
            elif each.route.coalesce:
                self._coalesce(each, at_once, out, now)
            else:
                self._add(each, out, now)
        tasks.extend(at_once.values())
        for key in self._grown:
            if key in self._batches:
                out.saving.extend(self._save_batch(self._batches[key]))
        self._grown.clear()
        return out

    def release_all(self) -> Batched:
        """Return the deferred calls, due or not."""
        out = Batched([], [], [])
        self._release(out, self._clock() + self._interval + self._longest)
        return out

    def restore(self, deferred: Iterable[bytes], items_of: Callable[[str], list[bytes]]) -> None:
        """Take over the calls that a previous listener deferred: all are due immediately.

        `deferred` are the values of the hash, `items_of` reads a list. Raise BrokerError if the format is unknown.
        """
        try:
            self._restore(deferred, items_of)
        except (LookupError, TypeError, ValueError) as error:
            raise BrokerError(
                f"The listener cannot read the deferred tasks in {self._key}: {type(error).__name__}.",
                hint=f"See them: redis-cli HGETALL {self._key}\nTo continue without them: redis-cli DEL {self._key}",
                code="unreadable_deferred",
            ) from error

    def _restore(self, deferred: Iterable[bytes], items_of: Callable[[str], list[bytes]]) -> None:
        self._batches.clear()
        self._grown.clear()
        self._fired_at.clear()
        self._waiting.clear()
        for record in map(json.loads, deferred):
            route, origin = route_of(record)
            if record["arguments"] is not None:
                on = route.id, record["arguments"].encode(), record.get("kwargs", "").encode()
                self._fired_at[on] = self._clock() - self._interval
                self._waiting[on] = Call(route, origin, *on[1:])
            else:
                batch = _OpenBatch(route, origin, self._clock() - self._longest, key=record.get("key"))
                batch.items = items_of(self._items_key(batch))
                batch.saved, batch.size = len(batch.items), sum(map(len, batch.items))
                self._batches[batch.name] = batch

    def _release(self, out: Batched, now: float) -> None:
        """Add what has waited long enough."""
        while self._batches:
            batch = next(iter(self._batches.values()))
            if now - batch.opened_at < self._longest:
                break
            self._close(batch, out)
        while self._fired_at:
            on, fired_at = next(iter(self._fired_at.items()))
            if now - fired_at < self._interval:
                break
            del self._fired_at[on]
            call = self._waiting.pop(on, None)
            if call is not None:
                self._fired_at[on] = now
                out.tasks.append(call)
                out.saving.append(("HDEL", self._key, _field(*on)))

    def _add(self, call: Call, out: Batched, now: float) -> None:
        route, key = call.route, call.key
        name = route.id if key is None else _keyed_name(route, key)
        batch = self._batches.get(name)
        item = _item(call)
        if batch is not None and not self._fits(batch.size + len(batch.items) + len(item)):
            self._close(batch, out)
            batch = None
        if batch is None:
            origin = Origin(call.change.kind, call.change.stamp)
            batch = self._batches[name] = _OpenBatch(route, origin, now, key=key)
        batch.add(item)
        self._grown[name] = None
        if batch.is_full:
            self._close(batch, out)
        elif len(self._batches) > _MOST_OPEN:
            self._close(next(iter(self._batches.values())), out)

    def _fits(self, length: int) -> bool:
        return self.max_bytes is None or length <= self.max_bytes

    def _refused(self, call: Call) -> Parked:
        error = too_large(len(call.arguments) + len(call.kwargs), self.max_bytes or 0)
        return Parked(call.route, call.change, error, call.arguments, call.kwargs, call.key)

    def _close(self, batch: _OpenBatch, out: Batched) -> None:
        del self._batches[batch.name]
        out.tasks.append(batch.to_call())
        if batch.saved:
            out.saving.append(("DEL", self._items_key(batch)))
            out.saving.append(("HDEL", self._key, _field(batch.name)))

    def _save_batch(self, batch: _OpenBatch) -> Iterator[Command]:
        if not batch.saved:
            record = record_of(batch.route, batch.origin, None, key=batch.key)
            yield "HSET", self._key, _field(batch.name), record
        yield "RPUSH", self._items_key(batch), *batch.items[batch.saved :]
        batch.saved = len(batch.items)

    def _coalesce(self, call: Call, at_once: dict[_CoalescedOn, Call], out: Batched, now: float) -> None:
        on = call.route.id, call.arguments, call.kwargs
        if on in at_once or on not in self._fired_at:
            # One task replaces all calls that are published together: it sees all their rows.
            self._fired_at[on] = now
            at_once[on] = call
            return
        if on not in self._waiting:
            origin = Origin(call.change.kind, call.change.stamp, call.change.commit)
            record = record_of(call.route, origin, call.arguments, call.kwargs)
            out.saving.append(("HSET", self._key, _field(*on), record))
        self._waiting[on] = call

    def _items_key(self, batch: _OpenBatch) -> str:
        return f"{self._key}:{batch.name}"


def batch_together(
    fired: Iterable[Call | Parked], *, max_bytes: int | None = None
) -> tuple[list[Call], list[Parked]]:
    """Coalesce and batch only calls published together: for a broker without deferring."""
    batcher = Batcher("", interval=0.0, longest=0.0)
    batcher.max_bytes = max_bytes
    now = batcher.batch(fired)
    late = batcher.batch(())
    return now.tasks + late.tasks, now.parked


def _item(call: Call) -> bytes:
    if call.route.args is None:
        return call.arguments
    return b"[%b]" % call.arguments if call.route.kwargs is None else b"{%b}" % call.kwargs


def _field(route_id: str, arguments: bytes = b"", kwargs: bytes = b"") -> bytes:
    field = b"%b %b" % (route_id.encode(), arguments)
    return b"%b {%b}" % (field, kwargs) if kwargs else field


def _keyed_name(route: Route, key: str) -> str:
    return f"{route.id} {key}"


def record_of(
    route: Route, origin: Origin, arguments: bytes | None, kwargs: bytes = b"", key: str | None = None
) -> bytes:
    """Return the record of a call for Redis, as JSON. `arguments` as in Call; None: the batch is still open."""
    change_id, position = origin.stamp
    record: dict[str, Any] = {
        "route": route.id,
        "task": route.task,
        "queue": route.queue,
        "batch": route.batch,
        "on_failure": route.on_failure,
        "key": key,
        "countdown": route.countdown,
        "priority": route.priority,
        "expires": route.expires,
        "on_full": route.on_full,
        "replay": route.replay,
        "kind": origin.kind,
        "id": change_id.decode(),
        "position": position.decode(),
        "arguments": None if arguments is None else arguments.decode(),
        "kwargs": kwargs.decode(),
    }
    if (context := origin.commit.context) is not None:
        record["context"] = context.values
    return json.dumps(record).encode()


def route_of(record: dict[str, Any]) -> tuple[Route, Origin]:
    """Return the route and origin in a record of `record_of`. Raise LookupError, TypeError, ValueError.

    The route creates the same messages as before, even if it is no longer registered.
    """
    schema, table, event = kind = tuple(record["kind"])
    said = record.get("context")
    commit = KnownCommit(None if said is None else Context.of(said))
    origin = Origin(kind, (record["id"].encode(), record["position"].encode()), commit)
    if event == EventType.ENQUEUED.value:
        return enqueued_route(kind), origin
    route = Route(
        schema=schema,
        table=table,
        events=frozenset({EventType(event)}),
        task=record["task"],
        when=None,
        args=None,
        columns=None,
        queue=record["queue"],
        coalesce=record["batch"] is None,
        batch=record["batch"],
        countdown=record.get("countdown"),
        priority=record.get("priority"),
        expires=record.get("expires"),
        id=record["route"],
        is_grouped=True,
        on_full=record.get("on_full", PAUSE),  # records of earlier versions have none
        on_failure=record.get("on_failure", "continue"),
        replay=record.get("replay"),
    )
    return route, origin
