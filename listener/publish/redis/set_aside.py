"""Messages that wait beside their queue while it is too long: in order, and saved with the checkpoint.

A route with `on_full="set_aside"` does not let its full queue stop the others. While a queue has more than
CDC_MAX_QUEUE messages, those of such routes go to a list of their own. When workers have made room, the oldest move to
the queue. Each push and each move is part of the step that moves the checkpoint, so no message is lost or doubled.

While the list has messages, new ones go behind them: the order stays. There is one list for each queue, so the order
between its routes stays too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

import structlog

from listener.publish.redis.connection import Command

__all__ = ["SetAside", "set_aside_key", "set_aside_list"]

log = structlog.get_logger()

_MOST_MOVED: Final = 1_000  # messages that one step moves: the batch beside them must not wait long


def set_aside_key(prefix: str) -> str:
    """Return the key of the Redis hash whose values are the queues with messages set aside."""
    return f"{prefix}:set-aside"


def set_aside_list(prefix: str, queue: str) -> str:
    """Return the key of the list that has the messages for the queue, the oldest at its right end."""
    return f"{set_aside_key(prefix)}:{queue}"


class SetAside:
    """Which queues are full, and how their messages get back to them."""

    def __init__(self, prefix: str, *, max_queue: int | None) -> None:
        """`prefix` is that of the listener's keys; `max_queue` is CDC_MAX_QUEUE, None if there is no limit."""
        self._prefix = prefix
        self._max_queue = max_queue
        self._index = set_aside_key(prefix)
        self._length: dict[str, int] = {}  # of the queues that are full, or have messages set aside
        self._ended: set[str] = set()  # queues that may still be in the index
        self.lists: dict[str, str] = {}  # queue -> the list that takes its messages now

    @property
    def is_due(self) -> bool:
        """Whether the next step has something to do here."""
        return bool(self.lists or self._ended)

    def restore(self, queues: Iterable[str]) -> None:
        """Take over what a former listener set aside: `queues` are the values at `set_aside_key`."""
        self._length = {}
        self._ended = set()
        self.lists = {queue: set_aside_list(self._prefix, queue) for queue in queues}

    def learn(self, lengths: Mapping[str, int], queues: Iterable[str]) -> None:
        """Learn the lengths of queues and lists, by their keys. `queues`: those for which messages may be set aside."""
        for queue, messages in list(self.lists.items()):
            self._length[queue] = lengths.get(queue, 0)
            if lengths.get(messages) == 0 and not self._is_full(queue):
                del self.lists[queue], self._length[queue]
                self._ended.add(queue)
                log.info("set_aside_ended", queue=queue)
        for queue in queues:
            if queue not in self.lists and self._max_queue is not None and lengths[queue] > self._max_queue:
                self._length[queue] = lengths[queue]
                self.lists[queue] = set_aside_list(self._prefix, queue)
                log.warning("set_aside", queue=queue, length=lengths[queue], cdc_max_queue=self._max_queue)

    def commands(self) -> Iterator[Command]:
        """Yield what moves the oldest messages to the queues that have room, and keeps the index; behind all pushes."""
        for queue, messages in self.lists.items():
            for _ in range(self._room(queue)):
                yield "RPOPLPUSH", messages, queue
        if self.lists:
            yield "HSET", self._index, *chain.from_iterable((queue, queue) for queue in self.lists)
        if gone := self._ended - self.lists.keys():
            yield "HDEL", self._index, *gone
        self._ended = set()

    def _is_full(self, queue: str) -> bool:
        return self._max_queue is not None and self._length.get(queue, 0) > self._max_queue

    def _room(self, queue: str) -> int:
        if queue not in self._length:  # nobody has looked yet
            return 0
        if self._max_queue is None:
            return _MOST_MOVED
        return max(0, min(_MOST_MOVED, self._max_queue - self._length[queue]))
