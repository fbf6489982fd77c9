"""Tasks set aside in Redis, for queues of another broker: see `listener/publish/redis/set_aside.py`.

There is one list per route. A task leaves it in two steps: the broker confirms it, then the step of the checkpoint
removes it. After a crash between the two it is sent again, with the same id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from cdc_tasks.routing.router import SET_ASIDE, Call, Origin
from listener.publish.batching import record_of, route_of
from listener.publish.redis.connection import Command

__all__ = ["SetAsideTasks"]

_MOST_MOVED: Final = 500  # tasks that leave their list with one batch


class SetAsideTasks:
    """Selects the tasks that wait in a list, and those that leave it."""

    def __init__(self, index: str, queue_of: Callable[[Call], str]) -> None:
        """`index` is the Redis hash of the lists; `queue_of` returns the name of the queue that a task goes to."""
        self._index = index
        self._queue_of = queue_of
        self._count: Counter[str] = Counter()  # tasks in the list of each route, by its id
        self._queues: dict[str, str] = {}  # of each list
        self._paused: frozenset[str] = frozenset()
        self.full: Collection[str] = ()  # queues that are longer than CDC_MAX_QUEUE

    @property
    def longest(self) -> int:
        """How many tasks the longest list has."""
        return max(self._count.values(), default=0)

    @property
    def is_used(self) -> bool:
        """Whether a task may go to a list, or leave it."""
        return bool(self._count or self._paused or self.full)

    def restore(self, ask: Callable[[list[Command]], list[Any]]) -> None:
        """Take over the tasks that a previous listener set aside; `ask` returns the replies of Redis."""
        (found,) = ask([("HGETALL", self._index)])
        names = sorted(name.decode() for name in (found if isinstance(found, dict) else found[::2]))
        self._queues = {name.partition(":")[0]: name.partition(":")[2] for name in names}
        counts = ask([("LLEN", self.key(route)) for route in self._queues])
        self._count = Counter(dict(zip(self._queues, counts, strict=True)))

    def pause(self, routes: Collection[str]) -> None:
        """Set aside the tasks of the routes with these ids."""
        self._paused = frozenset(routes)

    def key(self, route: str) -> str:
        """Return the key of a route's list; the oldest task is at its left end."""
        return f"{self._index}:{route}:{self._queues.get(route, '')}"

    def release(self, ask: Callable[[list[Command]], list[Any]]) -> tuple[list[Call], list[Command]]:
        """Return the tasks that may leave their lists, and the commands that remove them once the broker has them."""
        calls: list[Call] = []
        removals: list[Command] = []
        for route in [each for each in self._count if not self._is_closed(each)]:
            (records,) = ask([("LRANGE", self.key(route), "0", str(_MOST_MOVED - 1))])
            calls += map(_call, records)
            removals.append(("LTRIM", self.key(route), str(len(records)), "-1"))
            self._count[route] -= len(records)
            if self._count[route] <= 0:
                removals.append(("HDEL", self._index, f"{route}:{self._queues[route]}"))
                del self._count[route], self._queues[route]
        return calls, removals

    def split(self, tasks: Sequence[Call]) -> tuple[list[Call], list[Command]]:
        """Return the tasks that go to their queues, and the commands that set the others aside."""
        now: list[Call] = []
        kept: list[Command] = []
        for each in tasks:
            if self._stays(each):
                kept += self._keep(each)
            else:
                now.append(each)
        return now, kept

    def drop(self, route: str) -> tuple[int, list[Command]]:
        """Drop a route's list; return how many tasks it has, and the commands that remove it."""
        if route not in self._count:
            return 0, []
        key, name = self.key(route), f"{route}:{self._queues.pop(route)}"
        return self._count.pop(route), [("DEL", key), ("HDEL", self._index, name)]

    def _stays(self, call: Call) -> bool:
        route = call.route
        if route.id in self._count or route.id in self._paused:
            return True
        return route.on_full == SET_ASIDE and self._queue_of(call) in self.full

    def _keep(self, call: Call) -> Iterator[Command]:
        route, origin = call.route, Origin(call.change.kind, call.change.stamp, call.change.commit)
        queue = self._queues.setdefault(route.id, self._queue_of(call))
        if route.id not in self._count:
            yield "HSET", self._index, f"{route.id}:{queue}", queue
        self._count[route.id] += 1
        yield "RPUSH", self.key(route.id), record_of(route, origin, call.arguments, call.kwargs, call.key)

    def _is_closed(self, route: str) -> bool:
        return route in self._paused or self._queues[route] in self.full


def _call(record: bytes) -> Call:
    fields = json.loads(record)
    arguments, kwargs = fields["arguments"].encode(), fields["kwargs"].encode()
    return Call(*route_of(fields), arguments, kwargs, fields.get("key"))
