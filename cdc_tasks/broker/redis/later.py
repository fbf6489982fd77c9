"""Messages that are due later wait in Redis, and not in a worker.

Celery's worker takes a message with an ETA as any other and holds it, with a timer, until it is due: all there are, and
then they are in one worker's memory. Ours holds only what is due soon, and a bounded number of that (`is_to_wait`). The
rest goes, in the step that takes it off what the worker holds, into a sorted set for the list that it came from,
`cdc:later:LIST`; `cdc:later` has these lists, by when the first message of each is due.

Any worker moves what is due to the consumers' end of its list, in order. It looks with its look at the leases, and when
the next message is due. It moves a limited number at a time: what is moved later goes behind what was moved before and
is still there.

How long a message still waits is measured with a clock in Redis that no step moves, and that goes on while nobody looks
(PASSED in `cdc_tasks/broker/clock.py`). A message with a countdown is due when it comes back. One with an ETA alone is
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
_MOVED: Final = "cdc:later-moved"  # a hash: list, the message of it that was moved last

KEEP_SECONDS: Final = 60.0  # a worker keeps what is due within them
KEEP_MESSAGES: Final = 500
KEEP_BYTES: Final = 100_000  # bytes of each

_AT_ONCE: Final = 1000  # messages that are moved and that nobody has taken yet
_AGAIN: Final = 0.25  # seconds between two looks while something is due
_JITTER: Final = 250  # milliseconds between two clocks that count as none

logger = get_logger(__name__)

# In the scripts below the first command that writes is one that a full Redis takes; then it takes all of them.

# KEYS: unacked, its index, LATER, the list's sorted set, the clock; ARGV: the delivery tag, the list, the message, when
# it is due by the caller's idea of the clock, in how many milliseconds, for how long the caller has not looked
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

# KEYS: LATER, the clock; ARGV: for how long the caller has not looked
_LOOK: Final = f"""{PASSED}
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HDEL', KEYS[2], '')
local now = passed(KEYS[2], tonumber(ARGV[1]))
local next = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
return {{string.format('%.0f', now), next[2] or '', due}}
"""

# KEYS: LATER, the list's sorted set, the list, MOVED; ARGV: the clock as it was read
# LPOS is not in Redis before 6.0.6: there what is moved later goes ahead.
_MOVE: Final = f"""
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'list' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE of ' .. KEYS[3] .. ': ' .. kind)
end
redis.call('HDEL', KEYS[4], '')
local before, ahead = redis.call('HGET', KEYS[4], KEYS[3]), {{}}
if before then
    local place = redis.pcall('LPOS', KEYS[3], before, 'RANK', -1, 'MAXLEN', {_AT_ONCE})
    if type(place) == 'number' then
        local number = redis.call('LLEN', KEYS[3]) - place
        if number >= {_AT_ONCE} then return 0 end
        for i = 1, number do ahead[i] = redis.call('RPOP', KEYS[3]) end
    end
end
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, {_AT_ONCE} - #ahead)
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

    `unacknowledged`: how many messages that are due later this worker keeps.
    """
    return seconds > KEEP_SECONDS or (seconds > 0 and (unacknowledged >= KEEP_MESSAGES or size > KEEP_BYTES))


def waiting_key(place: str) -> str:
    """Return the key of the sorted set with the messages that are to come to this list."""
    return f"{LATER}:{place}"


def waiting(client: redis.Redis, prefix: str, separator: str) -> dict[str, int]:
    """Return how many messages of each queue wait; raises what redis-py raises."""
    found: dict[str, int] = {}
    places: Any = client.zrange(f"{prefix}{LATER}", 0, -1)
    for place in places:
        name = bytes_to_str(place)
        queue = name.removeprefix(prefix).partition(separator)[0]
        found[queue] = found.get(queue, 0) + client.zcard(f"{prefix}{waiting_key(name)}")
    return dict(sorted(found.items()))


class _Looks:
    """When this process last looked at the clock in Redis; it knows for how long it can't have gone on since."""

    def __init__(self) -> None:
        self._last: float | None = None

    def milliseconds(self) -> int:
        return -1 if self._last is None else round((monotonic() - self._last) * 1000)

    def note(self, at: float) -> None:
        self._last = at


_looks = _Looks()  # outlives channels: a failover to a machine with another clock ends them all


class Later:
    """What one channel puts there and brings back."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._offset: int | None = None  # from this machine's clock to the one in Redis, milliseconds
        self._timer: Any = None
        self._look_at = float("inf")  # when the timer ends, by the monotonic clock
        self._is_closed = False

    def put(self, message: Any, due: datetime) -> bool:
        """Let a message that this worker has just taken wait; return False where Redis refuses that."""
        now = round(time() * 1000)
        due_ms = round(due.timestamp() * 1000)
        tag, place = message.delivery_tag, self._prefixed(self._place(message))
        keys = [self._channel.unacked_key, self._channel.unacked_index_key, LATER, waiting_key(place), _CLOCK]
        planned = "" if self._offset is None else due_ms + self._offset
        text = dumps({**message._raw, "headers": without_countdown(message.headers)})  # noqa: SLF001  # kombu has no other
        try:
            answer = self._run(_PUT, keys, [tag, place, text, planned, due_ms - now])
        except redis.ResponseError as error:
            logger.warning("a message that is due later stays in this worker: %s", error)
            return False
        virtual.QoS.ack(self._channel.qos, tag)
        if answer is not None:  # else this worker stood still, and others have the message now
            self._follow(int(answer) - now)
            self._look_in((due_ms - now) / 1000)
        return True

    def look(self) -> None:
        """Move what is due to its list, and see to it that what is due next is moved then."""
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
        """Delete what waits for this queue, and return how many messages those were."""
        places = {self._channel._q_for_pri(queue, step) for step in self._channel.priority_steps}  # noqa: SLF001  # as kombu's `_purge`
        pipe = self._redis().pipeline()
        for place in map(self._prefixed, places):
            key = self._prefixed(waiting_key(place))
            pipe.zcard(key)
            pipe.delete(key)
            pipe.zrem(self._prefixed(LATER), place)
        return int(sum(pipe.execute()[::3]))

    def close(self) -> None:
        """Look no more."""
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
            logger.warning("what is due can't go to its queue now: %s", error)

    def _follow(self, offset: int) -> None:
        """Keep the offset while it is about right: messages with the same ETA stay in their order."""
        if self._offset is None or abs(offset - self._offset) > _JITTER:
            self._offset = offset

    def _look_in(self, seconds: float) -> None:
        loop = self._channel.connection.loop
        at = monotonic() + seconds
        if loop is None or self._is_closed or at >= self._look_at:
            return
        self._stop_timer()
        self._look_at = at
        self._timer = loop.call_later(max(seconds, 0), self.look)

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
