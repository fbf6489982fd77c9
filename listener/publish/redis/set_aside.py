"""Messages set aside, outside their queue: in order, and saved with the checkpoint.

Two things send a message to a list instead of its queue:

- The queue has more than CDC_MAX_QUEUE messages, and the route has `on_full="set_aside"`: a full queue does not stop
  routes to other queues. There is one such list per queue, so the order between its routes is kept.
- The route is paused. There is one such list per route and queue.

When workers have made room, or the route is resumed, the oldest messages move to the queue. Each push and each move is
part of the step that moves the checkpoint, so no message is lost or doubled. While a list has messages, new ones go
after them, in order. A message with a key takes its place among those of the key when it moves to the queue, so
a paused route does not block other routes of its group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from cdc_tasks.broker.redis.message_groups import MOVE
from cdc_tasks.routing.router import SET_ASIDE, Route
from listener.publish.redis.connection import Command

__all__ = ["SetAside", "queue_and_route", "set_aside_key"]

log = structlog.get_logger()

_MOST_MOVED: Final = 1_000  # messages that one step moves: its batch must not wait long
_FULL: Final = "full"  # the first part of a list's name; no route has this id


def set_aside_key(prefix: str) -> str:
    """Return the key of the Redis hash with the lists' names and queues. A list's key is this key, ":" and its name."""
    return f"{prefix}:set-aside"


def queue_and_route(name: str) -> tuple[str, str | None]:
    """Return the queue of the list with this name, and the id of the paused route if the list belongs to one."""
    owner, _, queue = name.partition(":")
    return queue, None if owner == _FULL else owner


@dataclass(frozen=True, slots=True)
class _List:
    """The messages for one queue; the oldest is at its right end."""

    name: str
    key: str
    queue: str
    route: str | None  # the id of a paused route


class SetAside:
    """Selects the messages to set aside, and moves them there and back."""

    def __init__(self, prefix: str, *, max_queue: int | None, key_prefix: str = "") -> None:
        """`prefix` is that of the listener's keys, `key_prefix` that of all keys at the broker.

        `max_queue` is CDC_MAX_QUEUE, None if there is no limit.
        """
        self._key_prefix = key_prefix
        self._max_queue = max_queue
        self._index = set_aside_key(prefix)
        self._lists: dict[str, _List] = {}  # by name: those that take messages, or have some
        self._ended: set[str] = set()  # lists that may still be in the index
        self._length: dict[str, int] = {}  # of queues and lists, by key, as the last step found them
        self._paused: frozenset[str] = frozenset()  # ids of routes

    @property
    def is_used(self) -> bool:
        """Whether a message may go to a list."""
        return bool(self._lists or self._paused)

    @property
    def is_due(self) -> bool:
        """Whether the next step has something to do, even without a message."""
        return bool(self._ended) or any(each.route not in self._paused for each in self._lists.values())

    @property
    def keys(self) -> Iterator[str]:
        """The keys whose lengths `learn` needs."""
        for each in self._lists.values():
            yield each.queue
            yield each.key

    @property
    def longest(self) -> int:
        """How many messages the longest list had after the last step."""
        return max((self._length.get(each.key, 0) for each in self._lists.values()), default=0)

    def restore(self, names: Iterable[str]) -> None:
        """Take over the messages that a previous listener set aside: `names` are the fields at `set_aside_key`."""
        self._length, self._lists, self._ended = {}, {}, set()
        for name in names:
            self._open(name)

    def pause(self, routes: Collection[str]) -> None:
        """From now on, set aside the messages of the routes with these ids, and of no others."""
        self._paused = frozenset(routes)

    def target(self, route: Route, queue: str) -> str:
        """Return the key of the list that gets the route's messages, or else the queue."""
        name = f"{route.id}:{queue}"
        if name in self._lists or route.id in self._paused:
            return self._open(name).key
        full = self._lists.get(f"{_FULL}:{queue}") if route.on_full == SET_ASIDE else None
        return queue if full is None else full.key

    def learn(self, lengths: Mapping[str, int], queues: Iterable[str]) -> None:
        """Store the lengths of queues and lists, by key. `queues`: those with routes that set aside if full."""
        self._length = dict(lengths)
        for each in list(self._lists.values()):
            if lengths.get(each.key) == 0 and not self._is_closed(each):
                del self._lists[each.name]
                self._ended.add(each.name)
                log.info("set_aside_ended", queue=each.queue, route=each.route)
        for queue in queues:
            if self._is_full(queue) and f"{_FULL}:{queue}" not in self._lists:
                self._open(f"{_FULL}:{queue}")
                log.warning("set_aside", queue=queue, length=lengths[queue], cdc_max_queue=self._max_queue)

    def commands(self) -> Iterator[Command]:
        """Yield the commands that move the oldest messages to queues with room; after all pushes."""
        for each in self._lists.values():
            if room := self._room(each):
                yield "EVAL", MOVE, "2", each.key, each.queue, self._key_prefix, str(room)
        if gone := self._ended - self._lists.keys():
            yield "HDEL", self._index, *gone
        self._ended = set()

    def index(self, keys: Collection[str]) -> Iterator[Command]:
        """Yield the commands that record which of these keys are lists, for the next listener."""
        for each in self._lists.values():
            if each.key in keys:
                yield "HSET", self._index, each.name, each.queue

    def drop(self, route: str) -> tuple[list[str], list[Command]]:
        """Return the keys of a paused route's lists, and the commands that empty them."""
        mine = [each for each in self._lists.values() if each.route == route]
        return [each.key for each in mine], [("DEL", each.key) for each in mine]

    def _open(self, name: str) -> _List:
        queue, route = queue_and_route(name)
        return self._lists.setdefault(name, _List(name, f"{self._index}:{name}", queue, route))

    def _is_full(self, queue: str) -> bool:
        return self._max_queue is not None and self._length.get(queue, 0) > self._max_queue

    def _is_closed(self, each: _List) -> bool:
        """Return whether no message may leave the list now."""
        return self._is_full(each.queue) if each.route is None else each.route in self._paused

    def _room(self, each: _List) -> int:
        length, waiting = self._length.get(each.queue), self._length.get(each.key, _MOST_MOVED)
        if length is None or self._is_closed(each):  # not checked yet
            return 0
        most = min(_MOST_MOVED, waiting)
        return most if self._max_queue is None else max(0, min(most, self._max_queue - length))
