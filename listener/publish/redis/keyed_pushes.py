"""Messages with a key: their destinations, and the script that verifies and corrects them.

A script costs Redis several times as much as a plain command with the same words. So the messages bypass it: those
of a recently busy key are appended to the messages waiting for it, and so are all but the first of a key in this
step. The first message of another key goes to its queue. The script after them in the same atomic step
(`ADMIT` in `cdc_tasks/broker/redis/message_groups.py`) gets the keys, and corrects wrong guesses.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from time import time
from typing import Any, Final, NamedTuple

from cdc_tasks.broker.redis.message_groups import ADMIT, ADMIT_DIGEST, owners_key, waiting_list
from cdc_tasks.routing.router import Call
from listener.publish.redis.connection import Command
from listener.publish.redis.envelope import Keyed

__all__ = ["KeyedPushes"]

_AT_ONCE: Final = 250  # messages for one script, about
_IN_A_COMMAND: Final = 50  # longer commands cost the allocator more


class _First(NamedTuple):
    """The first messages of free keys, for one queue."""

    messages: list[bytes]
    records: list[str | bytes]  # of each message: its key, and the record that makes it the owner


class KeyedPushes:
    """The commands for the messages with a key of one step."""

    def __init__(self, prefix: str, busy: Collection[str], met: set[str], *, max_bytes: int) -> None:
        """`busy`: keys of earlier messages. `met` receives the keys passed to the script.

        `max_bytes`: how long a message may be.
        """
        self._prefix = prefix
        self._busy = busy
        self._met = met
        self._max_bytes = max_bytes
        self._script = "EVAL", ADMIT  # once in the atomic step; then Redis has it cached
        self._since = b"%d]" % time()
        self._start()

    def _start(self) -> None:
        self._waiting: dict[str, list[bytes]] = {}  # by key, each after its list
        self._ids: dict[str, list[bytes]] = {}  # by key: the ids of these messages' changes
        self._free: dict[str, _First] = defaultdict(lambda: _First([], []))  # by queue
        self._owned: dict[str, None] = {}  # the free keys
        self._lists: list[str] = []  # of all waiting messages

    @property
    def is_due(self) -> bool:
        """Whether there are enough messages to run the script."""
        return len(self._lists) + len(self._owned) >= _AT_ONCE

    def add(self, task: Call, key: str, queue: str, of_key: Keyed) -> int:
        """Add the message of a task with this key, unless it is longer than `max_bytes`; return its length."""
        _, change, arguments, kwargs, _ = task
        change_id, position = change.stamp
        waiting = self._waiting.get(key)
        if waiting is None and key not in self._busy and key not in self._met and key not in self._owned:
            message = of_key.render(arguments, kwargs, change_id, position, key)
            if len(message) <= self._max_bytes:
                self._owned[key] = None
                messages, records = self._free[queue]
                messages.append(message)
                records.append(key)
                records.append(of_key.owner(change_id, position) + self._since)
            return len(message)
        message = of_key.render_waiting(arguments, kwargs, change_id, position, key)
        length = len(message)
        if length > self._max_bytes:
            return length
        if waiting is None:
            self._waiting[key] = [message]
            self._ids[key] = [change_id]
        else:
            waiting.append(message)
            self._ids[key].append(change_id)
        self._lists.append(queue)
        return length

    def commands(self) -> Iterator[Command]:
        """Yield the commands that store all of them, and start again empty."""
        if not self._lists and not self._owned:
            return
        waiting_of = waiting_list(self._prefix, "")
        for key, messages in self._waiting.items():
            if len(messages) == 1:  # as with many keys
                yield "RPUSH", waiting_of + key, messages[0]
            else:
                yield from _in_parts("RPUSH", waiting_of + key, messages)
        for queue, first in self._free.items():
            yield from _in_parts("LPUSH", queue, first.messages)
        yield self._admission()
        self._met.update(self._ids)
        self._met.update(self._owned)
        self._script = "EVALSHA", ADMIT_DIGEST
        self._start()

    def _admission(self) -> Command:
        """Return the command that runs the script."""
        free = list(self._free.items())
        busy = (
            self._ids if not free else {key: self._ids[key] for key in self._ids.keys() - self._owned.keys()}
        )
        keys = [*busy, *chain.from_iterable(first.records[::2] for _, first in free)]
        ids = [each[0] if len(each) == 1 else b" ".join(each) for each in busy.values()]
        more = self._more(keys, len(busy))
        lists = Counter(self._lists)
        numbers = (len(busy), len(self._owned), len(free), len(more) // 2, len(lists))
        return (
            *self._script, b"1", owners_key(self._prefix), self._prefix, *[b"%d" % number for number in numbers],
            *keys,
            *ids,
            *chain.from_iterable(first.records for _, first in free),
            *_numbered({queue: len(first.messages) for queue, first in free}),
            *more,
            *_numbered(lists),
        )  # fmt: skip

    def _more(self, keys: Sequence[Any], busy: int) -> list[bytes]:
        """Return the script's arguments for keys with more than one message: their number, and how many wait.

        The first `busy` keys are the busy ones.
        """
        if len(self._lists) == busy:  # one for each of these, as with many keys
            return []
        found: list[bytes] = []
        for number, key in enumerate(keys, 1):
            waits = len(self._waiting.get(key, ()))
            if waits > (number <= busy):
                found += b"%d" % number, b"%d" % waits
        return found


def _in_parts(command: str, name: str, messages: Sequence[bytes]) -> Iterator[Command]:
    for start in range(0, len(messages), _IN_A_COMMAND):
        yield command, name, *messages[start : start + _IN_A_COMMAND]


def _numbered(lists: Mapping[str, int]) -> Iterator[str | bytes]:
    for name, number in lists.items():
        yield name
        yield b"%d" % number
