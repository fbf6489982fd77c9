"""Messages that are due later wait in Redis, not in a worker.

Celery's worker takes a message with an ETA like any other and keeps it, with a timer, until it is due. So all such
messages end up in one worker's memory. Our worker keeps only messages that are due soon, and a limited number of them
(`is_to_wait`). It moves each other message into a sorted set, `cdc:later:LIST`, for the list that it came from. The
same script removes it from the worker's unacknowledged messages. `cdc:later` has these lists by the time at which their
first message is due.

Any worker moves due messages to the consumers' end of their list, in order. It looks for them when it checks the
leases, and when the next message is due. It moves a limited number at a time. A later batch goes after the messages of
earlier batches that are still in the list.

The remaining time is measured with a clock in Redis that ignores steps and that continues while no one reads it (PASSED
in `cdc_tasks/broker/clock.py`). A message with a countdown is due when it is moved back. A message with only an ETA is
due by the clock of the worker that gets it.
"""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu.log import get_logger
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from cdc_tasks.broker.clock import PASSED
from cdc_tasks.broker.delays import without_countdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

__all__ = ["LATER", "Later", "is_to_wait", "waiting", "waiting_key"]

LATER: Final = "cdc:later"
_CLOCK: Final = "cdc:later-clock"
_MOVED: Final = "cdc:later-moved"  # a hash: list, the last message that was moved to it

KEEP_SECONDS: Final = 60.0  # a worker keeps messages that are due within this time
KEEP_MESSAGES: Final = 500
KEEP_BYTES: Final = 100_000  # of each message

_MAX_MOVED: Final = 1000  # moved messages that no worker has taken yet
_AGAIN: Final = 0.25  # seconds between two looks while messages are due
_JITTER: Final = 250  # milliseconds between two clocks that are ignored

logger = get_logger(__name__)

# In each script below, the first writing command is one that a full Redis allows; then it allows all the others.

# KEYS: unacked, its index, LATER, the list's sorted set, the clock; ARGV: the delivery tag, the list, the message, when
# it is due by the caller's estimate of the clock, in how many milliseconds it is due, milliseconds since the caller's
# last look
_PUT: Final = f"""{PASSED}
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return false end
redis.call('ZREM', KEYS[2], ARGV[1])
local now = passed(KEYS[5], tonumber(ARGV[6]))
local due, planned = now + tonumber(ARGV[5]), tonumber(ARGV[4])
if planned and math.abs(planned - due) <= {_JITTER} then due = planned end
local number = redis.call('HINCRBY', KEYS[5], 'number', 1)
redis.call('ZADD', KEYS[4], due, string.format('%015.0f ', number) .. ARGV[3])
local first = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not first or tonumber(first) > due then redis.call('ZADD', KEYS[3], due, ARGV[2]) end
return string.format('%.0f', now)
"""

# KEYS: LATER, the clock; ARGV: milliseconds since the caller's last look
_LOOK: Final = f"""{PASSED}
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HDEL', KEYS[2], '')
local now = passed(KEYS[2], tonumber(ARGV[1]))
local next = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
return {{string.format('%.0f', now), next[2] or '', due}}
"""

# KEYS: LATER, the list's sorted set, the list, MOVED; ARGV: the clock as it was read
# Redis before 6.0.6 has no LPOS: there a later batch goes before the earlier ones.
_MOVE: Final = f"""
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'list' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE of ' .. KEYS[3] .. ': ' .. kind)
end
redis.call('HDEL', KEYS[4], '')
local before, ahead = redis.call('HGET', KEYS[4], KEYS[3]), {{}}
if before then
    local place = redis.pcall('LPOS', KEYS[3], before, 'RANK', -1, 'MAXLEN', {_MAX_MOVED})
    if type(place) == 'number' then
        local number = redis.call('LLEN', KEYS[3]) - place
        if number >= {_MAX_MOVED} then return 0 end
        for i = 1, number do ahead[i] = redis.call('RPOP', KEYS[3]) end
    end
end
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, {_MAX_MOVED} - #ahead)
for i = #due, 1, -1 do redis.call('RPUSH', KEYS[3], string.sub(due[i], 17)) end
for i = #ahead, 1, -1 do redis.call('RPUSH', KEYS[3], ahead[i]) end
if #due > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, #due - 1)
    redis.call('HSET', KEYS[4], KEYS[3], string.sub(due[#due], 17))
    redis.call('EXPIRE', KEYS[4], 3600)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if first[2] then
    redis.call('ZADD', KEYS[1], first[2], KEYS[3])
else
    redis.call('ZREM', KEYS[1], KEYS[3])
end
return #due
"""


def is_to_wait(seconds: float, *, unacknowledged: int, size: int) -> bool:
    """Return whether a message that is due in `seconds` waits in Redis.

    `unacknowledged`: the number of messages that this worker keeps until they are due.
    """
    return seconds > KEEP_SECONDS or (seconds > 0 and (unacknowledged >= KEEP_MESSAGES or size > KEEP_BYTES))


def waiting_key(place: str) -> str:
    """Return the key of the sorted set with the messages that wait for this list."""
    return f"{LATER}:{place}"


def waiting(client: redis.Redis, prefix: str, separator: str) -> dict[str, int]:
    """Return how many messages of each queue wait; raise redis-py's errors."""
    found: dict[str, int] = {}
    places: Any = client.zrange(f"{prefix}{LATER}", 0, -1)
    for place in places:
        name = bytes_to_str(place)
        queue = name.removeprefix(prefix).partition(separator)[0]
        found[queue] = found.get(queue, 0) + client.zcard(f"{prefix}{waiting_key(name)}")
    return dict(sorted(found.items()))


class _Looks:
    """When this process last read the clock in Redis: an upper limit for the time since any worker last read it."""

    def __init__(self) -> None:
        self._last: float | None = None

    def milliseconds(self) -> int:
        return -1 if self._last is None else round((monotonic() - self._last) * 1000)

    def note(self, at: float) -> None:
        self._last = at


_looks = _Looks()  # not per channel: all channels close at a failover, maybe to a machine with another clock


class Later:
    """One channel's access to the waiting messages."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._offset: int | None = None  # from this machine's clock to the one in Redis, milliseconds
        self._timer: Any = None
        self._look_at = float("inf")  # when the timer fires, by the monotonic clock
        self._is_closed = False

    def put(self, message: Any, due: datetime) -> bool:
        """Make a message wait that this worker has just taken; return False if Redis refuses it."""
        now = round(time() * 1000)
        due_ms = round(due.timestamp() * 1000)
        tag, place = message.delivery_tag, self._prefixed(self._place(message))
        keys = [self._channel.unacked_key, self._channel.unacked_index_key, LATER, waiting_key(place), _CLOCK]
        planned = "" if self._offset is None else due_ms + self._offset
        text = dumps({**message._raw, "headers": without_countdown(message.headers)})  # noqa: SLF001  # kombu has no other
        try:
            answer = self._run(_PUT, keys, [tag, place, text, planned, due_ms - now])
        except redis.ResponseError as error:
            logger.warning(
                "Redis does not accept a message that is due later, so this worker keeps it: %s", error
            )
            return False
        virtual.QoS.ack(self._channel.qos, tag)
        if (
            answer is not None
        ):  # None: this worker was paused longer than its lease, and others have the message
            self._follow(int(answer) - now)
            self._look_in((due_ms - now) / 1000)
        return True

    def move_due(self) -> None:
        """Move due messages to their lists, and set the timer for the next one."""
        self._stop_timer()
        if self._is_closed:
            return
        answer = self._run(_LOOK, [LATER, _CLOCK], [])
        if answer is None:
            return
        now, following, places = answer
        for place in places:
            self._move(bytes_to_str(place), bytes_to_str(now))
        if places:
            self._look_in(_AGAIN)
        elif following:
            self._look_in((float(following) - float(now)) / 1000)

    def drop(self, queue: str) -> int:
        """Delete the messages that wait for this queue, and return how many there were."""
        places = {self._channel._q_for_pri(queue, step) for step in self._channel.priority_steps}  # noqa: SLF001  # as kombu's `_purge`
        number = 0
        for place in map(self._prefixed, places):
            number += self._channel.groups.purge_later(self._prefixed(waiting_key(place)))
            self._redis().zrem(self._prefixed(LATER), place)
        return number

    def close(self) -> None:
        """Stop the timer permanently."""
        self._is_closed = True
        self._stop_timer()

    def _place(self, message: Any) -> str:
        priority = self._channel._get_message_priority(message._raw, reverse=False)  # noqa: SLF001  # as kombu's `_put`
        place: str = self._channel._q_for_pri(self._channel.claimed_from, priority)  # noqa: SLF001  # the same
        return place

    def _move(self, place: str, now: str) -> None:
        client, prefix = self._redis(), self._channel.global_keyprefix
        keys = [f"{prefix}{LATER}", f"{prefix}{waiting_key(place)}", place, f"{prefix}{_MOVED}"]
        try:
            client.register_script(_MOVE)(keys=keys, args=[now])
        except redis.ResponseError as error:
            logger.warning("messages that are due cannot go to their queue now: %s", error)

    def _follow(self, offset: int) -> None:
        """Change the offset only if it is off by more than the jitter, so that messages with equal ETAs keep order."""
        if self._offset is None or abs(offset - self._offset) > _JITTER:
            self._offset = offset

    def _look_in(self, seconds: float) -> None:
        loop = self._channel.connection.loop
        at = monotonic() + seconds
        if loop is None or self._is_closed or at >= self._look_at:
            return
        self._stop_timer()
        self._look_at = at
        self._timer = loop.call_later(max(seconds, 0), self.move_due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._look_at = None, float("inf")

    def _redis(self) -> redis.Redis:
        return redis.Redis(connection_pool=self._channel.pool)

    def _prefixed(self, key: str) -> str:
        return f"{self._channel.global_keyprefix}{key}"

    def _run(self, script: str, keys: Iterable[str], arguments: Sequence[Any]) -> Any:
        began = monotonic()
        answer = self._redis().register_script(script)(
            keys=[self._prefixed(key) for key in keys], args=[*arguments, _looks.milliseconds()]
        )
        if answer is not None:
            _looks.note(began)
        return answer
