"""Recent changes in Redis, next to the checkpoint: a list of blocks, and a hash with the open block and the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from listener.control.recent.block import HEAD
from listener.publish.redis.connection import Command, RedisConnection

__all__ = ["BLOCK_OVERHEAD", "Memory", "Numbered", "RecentStore", "Sizes"]

BLOCK_OVERHEAD: Final = 100  # bytes of a block in addition to its data, about
_AT_ONCE: Final = 16  # blocks to read at a time

# Adds blocks, the newest at the head of the list, and drops the oldest until all are small enough; one atomic step.
_WRITE: Final = """
local blocks, state = KEYS[1], KEYS[2]
local limit, is_first, open, tail = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local size = tonumber(redis.call('HGET', state, 'bytes') or '0')
local changes = tonumber(redis.call('HGET', state, 'changes') or '0')
local pushed = tonumber(redis.call('HGET', state, 'pushed') or '0')
local function changes_in(block)
  return tonumber(string.match(block, '^MARK (%d+)\\n') or '0')
end
local function push(block)
  redis.call('LPUSH', blocks, block)
  size, changes, pushed = size + #block + OVERHEAD, changes + changes_in(block), pushed + 1
end
if is_first == '1' then
  local left = redis.call('HGET', state, 'tail')
  if left and #left > 0 then push(left) end
end
for number = 5, #ARGV do push(ARGV[number]) end
while size + #tail > limit do
  local old = redis.call('RPOP', blocks)
  if not old then size, changes = 0, 0 break end
  size, changes = math.max(0, size - #old - OVERHEAD), math.max(0, changes - changes_in(old))
end
redis.call('HSET', state, 'bytes', size, 'changes', changes, 'pushed', pushed, 'tail', tail, 'open', open)
return size
""".replace("MARK", HEAD.decode().replace("-", "%-")).replace("OVERHEAD", str(BLOCK_OVERHEAD))


class Sizes(NamedTuple):
    """What is kept."""

    changes: int
    bytes: int


class Memory(NamedTuple):
    """Redis' memory in bytes."""

    used: int
    limit: int | None  # maxmemory; None: no limit, or unknown


class Numbered(NamedTuple):
    """A block, with its number: they count up, the newest has the highest."""

    number: int
    data: bytes


class RecentStore:
    """Writes and reads the blocks of one listener. All methods raise BrokerAwayError, BrokerError."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME."""
        self._redis = redis
        self.state_key = redis.prefixed(f"cdc:{name}:recent")
        self.blocks_key = redis.prefixed(f"cdc:{name}:recent:blocks")

    def close(self) -> None:
        self._redis.close()

    def is_open(self) -> bool:
        """Return whether a listener is writing, or was killed."""
        (answer,) = self._redis.ask([("HGET", self.state_key, "open")])
        return bool(answer == b"yes")

    def write(
        self, blocks: Sequence[bytes], tail: bytes, limit: int, *, is_first: bool, is_last: bool = False
    ) -> None:
        """Add finished blocks, and replace the open one; keep up to `limit` bytes.

        `is_first`: the existing open block is a previous listener's, and becomes a finished one. `is_last`: the
        listener ends.
        """
        words = str(limit), "1" if is_first else "0", "no" if is_last else "yes", tail, *blocks
        self._redis.ask([("EVAL", _WRITE, "2", self.blocks_key, self.state_key, *words)])

    def halve(self) -> None:
        """Drop the older half: the memory is needed for other data."""
        (answer,) = self._redis.ask([("LLEN", self.blocks_key)])
        keep = int(answer) // 2
        if int(answer):
            self._redis.ask(
                [("LTRIM", self.blocks_key, "0", str(keep - 1)) if keep else ("DEL", self.blocks_key)]
            )
            sizes = self.sizes()
            kept = "bytes", str(sizes.bytes // 2), "changes", str(sizes.changes // 2)
            self._redis.ask([("HSET", self.state_key, *kept)])

    def memory(self) -> Memory:
        """Return how much memory Redis uses."""
        answer = self._redis.send([("INFO", "memory")])[0]
        if not isinstance(answer, bytes | str):  # not allowed
            return Memory(0, None)
        text = answer.decode() if isinstance(answer, bytes) else answer
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return Memory(int(fields.get("used_memory", 0)), int(fields.get("maxmemory", 0)) or None)

    # --- Reading ----------------------------------------------------------------------------------------------

    def sizes(self) -> Sizes:
        """Return how much is kept in finished blocks."""
        (answer,) = self._redis.ask([("HMGET", self.state_key, "changes", "bytes")])
        return Sizes(*(int(each or 0) for each in answer))

    def blocks(self, newest: int | None = None) -> Iterator[Numbered]:
        """Yield the blocks from number `newest` on (None: all), the newest first; the open one too.

        A listener may write meanwhile: no block comes twice.
        """
        tail, pushed, found = self._read(0, 0)
        if newest is None or newest >= pushed:
            if tail:
                yield Numbered(pushed, tail)
            newest = pushed - 1
        known, many = pushed, 1
        while newest >= 0:
            start = max(0, known - 1 - newest)
            _, known, found = self._read(start, many)
            numbered = [Numbered(known - 1 - start - place, data) for place, data in enumerate(found)]
            if not numbered:
                return
            for each in numbered:
                if each.number <= newest:
                    yield each
            newest = min(newest, numbered[-1].number - 1)
            many = _AT_ONCE

    def _read(self, start: int, many: int) -> tuple[bytes, int, list[bytes]]:
        """Return the open block, the number of blocks ever finished, and some finished ones, as of one moment."""
        commands: list[Command] = [
            ("MULTI",),
            ("HMGET", self.state_key, "tail", "pushed"),
            ("LRANGE", self.blocks_key, str(start), str(start + many - 1)),
            ("EXEC",),
        ]
        if not many:
            commands[2] = ("LRANGE", self.blocks_key, "1", "0")
        answer: Any = self._redis.ask(commands)[-1]
        (tail, pushed), found = answer
        return tail or b"", int(pushed or 0), found
