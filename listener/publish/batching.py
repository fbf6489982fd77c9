"""Coalescing and batching: which messages the calls become, and what is held back for a while.

A coalesced call goes out at once, and then none like it for `interval` seconds; what comes meanwhile becomes one
call at their end. A batch goes out when it is full, or when its first change has waited `longest` seconds. What
is held back is also written to Redis, in the same atomic step as the checkpoint, and read back at the start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

from cdc_tasks.changes import EventType
from cdc_tasks.routing.router import Call, Origin, Parked, Route
from listener.core.publisher import BrokerError
from listener.publish.redis.connection import Command, too_large

__all__ = ["Gathered", "Gatherer", "group"]

_MAX_BYTES = 1_000_000  # of arguments in a batch: wide rows come in smaller batches
_TICK = 0.25  # seconds between two looks at what is due: see `Monitor.batches`

_CoalescedOn = tuple[str, bytes]  # the route's key, the arguments


class Gathered(NamedTuple):
    """What becomes of some calls."""

    tasks: list[Call]
    parked: list[Parked]
    keeping: list[Command]  # how to keep what is held back: to be run together with the checkpoint's


@dataclass(slots=True)
class _OpenBatch:
    route: Route
    origin: Origin  # of the first change
    opened_at: float
    items: list[bytes] = field(default_factory=list)
    kept: int = 0  # how many of them are in Redis
    size: int = 0  # in bytes

    @property
    def is_full(self) -> bool:
        return len(self.items) == self.route.batch or self.size >= _MAX_BYTES

    def add(self, item: bytes) -> None:
        self.items.append(item)
        self.size += len(item)

    def to_call(self) -> Call:
        """Return the task, named after its first change and how many follow: a repeat may hold more, or fewer."""
        origin, more = self.origin, len(self.items) - 1
        if more:
            change_id, position = origin.stamp
            origin = Origin(origin.kind, (b"%b+%d" % (change_id, more), position))
        return Call(self.route, origin, b"[%b]" % b",".join(self.items))


class Gatherer:
    """Holds back what is to be coalesced or batched, across publishes and across crashes."""

    def __init__(
        self, key: str, *, interval: float = 0.5, longest: float = 1.0, clock: Callable[[], float] = monotonic
    ) -> None:
        """`key` is the Redis hash that says what is held back; `interval` and `longest` are in seconds."""
        self._key = key
        self._interval = interval
        self._longest = max(0.0, longest - _TICK)
        self._clock = clock
        self.most_arguments: int | None = None  # how many bytes of them the broker takes in one message
        self._batches: dict[str, _OpenBatch] = {}  # in the order of the times
        self._grown: dict[str, None] = {}  # those that got changes in this step
        self._fired_at: dict[_CoalescedOn, float] = {}  # in the order of the times
        self._waiting: dict[_CoalescedOn, Call] = {}

    def gather(self, fired: Iterable[Call | Parked]) -> Gathered:
        """Return what these calls, and those that are due, become."""
        gathered, now = Gathered([], [], []), self._clock()
        self._release(gathered, now)
        tasks, at_once = gathered.tasks, dict[_CoalescedOn, Call]()
        for each in fired:
            if isinstance(each, Parked):
                gathered.parked.append(each)
            elif not each.route.is_grouped:
                tasks.append(each)
            elif self._key and not self._fits(len(each.arguments)):  # it could not even be held back
                gathered.parked.append(self._refused(each))
            elif each.route.coalesce:
                self._coalesce(each, at_once, gathered, now)
            else:
                self._add(each, gathered, now)
        tasks.extend(at_once.values())
        for key in self._grown:
            if key in self._batches:
                gathered.keeping.extend(self._keep_batch(self._batches[key]))
        self._grown.clear()
        return gathered

    def gather_all(self) -> Gathered:
        """Return what is held back, due or not."""
        gathered = Gathered([], [], [])
        self._release(gathered, self._clock() + self._interval + self._longest)
        return gathered

    def restore(self, held: Iterable[bytes], items_of: Callable[[str], list[bytes]]) -> None:
        """Take over what a former listener held back: all of it is due at once.

        `held` are the values of the hash, `items_of` reads a list. Raises BrokerError where they are not ours.
        """
        try:
            self._restore(held, items_of)
        except (LookupError, TypeError, ValueError) as error:
            raise BrokerError(
                f"What was held back in {self._key} cannot be read: {type(error).__name__}.",
                hint=f"See it: redis-cli HGETALL {self._key}\nTo go on without it: redis-cli DEL {self._key}",
            ) from error

    def _restore(self, held: Iterable[bytes], items_of: Callable[[str], list[bytes]]) -> None:
        self._batches.clear()
        self._grown.clear()
        self._fired_at.clear()
        self._waiting.clear()
        for record in map(json.loads, held):
            route, origin = _restored(record)
            if record["arguments"] is not None:
                on = route.key, record["arguments"].encode()
                self._fired_at[on] = self._clock() - self._interval
                self._waiting[on] = Call(route, origin, on[1])
            else:
                items = items_of(self._items_key(route))
                opened_at = self._clock() - self._longest
                size = sum(map(len, items))
                self._batches[route.key] = _OpenBatch(route, origin, opened_at, items, len(items), size)

    def _release(self, gathered: Gathered, now: float) -> None:
        """Let go of what has waited long enough."""
        while self._batches:
            batch = next(iter(self._batches.values()))
            if now - batch.opened_at < self._longest:
                break
            self._close(batch, gathered)
        while self._fired_at:
            on, fired_at = next(iter(self._fired_at.items()))
            if now - fired_at < self._interval:
                break
            del self._fired_at[on]
            call = self._waiting.pop(on, None)
            if call is not None:
                self._fired_at[on] = now
                gathered.tasks.append(call)
                gathered.keeping.append(("HDEL", self._key, _field(*on)))

    def _add(self, call: Call, gathered: Gathered, now: float) -> None:
        route = call.route
        batch = self._batches.get(route.key)
        if batch is not None and not self._fits(batch.size + len(batch.items) + len(call.arguments)):
            self._close(batch, gathered)
            batch = None
        if batch is None:
            origin = Origin(call.change.kind, call.change.stamp)
            batch = self._batches[route.key] = _OpenBatch(route, origin, now)
        batch.add(_item(call))
        self._grown[route.key] = None
        if batch.is_full:
            self._close(batch, gathered)

    def _fits(self, length: int) -> bool:
        return self.most_arguments is None or length <= self.most_arguments

    def _refused(self, call: Call) -> Parked:
        error = too_large(len(call.arguments), self.most_arguments or 0)
        return Parked(call.route, call.change, error, call.arguments)

    def _close(self, batch: _OpenBatch, gathered: Gathered) -> None:
        del self._batches[batch.route.key]
        gathered.tasks.append(batch.to_call())
        if batch.kept:
            gathered.keeping.append(("DEL", self._items_key(batch.route)))
            gathered.keeping.append(("HDEL", self._key, _field(batch.route.key)))

    def _keep_batch(self, batch: _OpenBatch) -> Iterator[Command]:
        if not batch.kept:
            yield "HSET", self._key, _field(batch.route.key), _record(batch.route, batch.origin, None)
        yield "RPUSH", self._items_key(batch.route), *batch.items[batch.kept :]
        batch.kept = len(batch.items)

    def _coalesce(
        self, call: Call, at_once: dict[_CoalescedOn, Call], gathered: Gathered, now: float
    ) -> None:
        on = call.route.key, call.arguments
        if on in at_once or on not in self._fired_at:
            # What is published together is seen together: one task stands for all of it.
            self._fired_at[on] = now
            at_once[on] = call
            return
        if on not in self._waiting:
            origin = Origin(call.change.kind, call.change.stamp)
            gathered.keeping.append(
                ("HSET", self._key, _field(*on), _record(call.route, origin, call.arguments))
            )
        self._waiting[on] = call

    def _items_key(self, route: Route) -> str:
        return f"{self._key}:{route.key}"


def group(
    fired: Iterable[Call | Parked], *, most_arguments: int | None = None
) -> tuple[list[Call], list[Parked]]:
    """Coalesce and batch only what is published together: for a broker that cannot hold anything back."""
    gatherer = Gatherer("", interval=0.0, longest=0.0)
    gatherer.most_arguments = most_arguments
    now = gatherer.gather(fired)
    late = gatherer.gather(())
    return now.tasks + late.tasks, now.parked


def _item(call: Call) -> bytes:
    return call.arguments if call.route.args is None else b"[%b]" % call.arguments


def _field(route_key: str, arguments: bytes = b"") -> bytes:
    return b"%b %b" % (route_key.encode(), arguments)


def _record(route: Route, origin: Origin, arguments: bytes | None) -> bytes:
    change_id, position = origin.stamp
    record: dict[str, Any] = {
        "route": route.key,
        "task": route.task,
        "queue": route.queue,
        "batch": route.batch,
        "kind": origin.kind,
        "id": change_id.decode(),
        "position": position.decode(),
        "arguments": None if arguments is None else arguments.decode(),
    }
    return json.dumps(record).encode()


def _restored(record: dict[str, Any]) -> tuple[Route, Origin]:
    """Return a route that makes the messages that it made, even if it is registered no more."""
    schema, table, event = kind = tuple(record["kind"])
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
        key=record["route"],
        is_grouped=True,
    )
    return route, Origin(kind, (record["id"].encode(), record["position"].encode()))
