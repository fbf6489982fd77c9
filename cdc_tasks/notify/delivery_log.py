"""The log of deliveries: one message to one account is sent once, however many workers try, and however often.

A worker claims a message before it sends it, and marks it as sent afterwards. Redis does each in one atomic step, so
two workers with the same message cannot both send. A claim is a lease by the steady clock. If the worker dies, the
lease ends: then it is unknown whether the message was sent, and CDC_LOST_ANSWER decides.
"""

from __future__ import annotations

from enum import StrEnum
from uuid import uuid4

from cdc_tasks import cache
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.retry import NotYetError, TryAgain

__all__ = ["Claim", "DeliveryRecord"]

_LEASE = (
    65 + LONGEST_STEP
)  # seconds; above the task's time limit: a worker with an older claim has ended, or is dead
_KEPT = 7 * 24 * 3600  # seconds; a change that is replayed later than this is sent again


class Claim(StrEnum):
    """The answer to a worker that wants to send."""

    FREE = "free"  # no worker has tried: send
    SENT = "sent"  # do not send
    UNKNOWN = "unknown"  # a worker tried, with unknown outcome; the claim is now ours


# KEYS: the record, the clock; ARGV: the holder, milliseconds of the lease, seconds to keep the record
_CLAIM = f"""{STEADY}
local now = steady(KEYS[2])
local record = redis.call('HMGET', KEYS[1], 'sent', 'until', 'holder', 'before')
if record[1] then return {{'sent', 0}} end
if record[3] == ARGV[1] then return {{record[4], 0}} end  -- the answer was lost, and the client repeats the call
local left = record[2] and tonumber(record[2]) - now or 0
if left > 0 then return {{'busy', left}} end
local before = record[2] and 'unknown' or 'free'
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', now + ARGV[2], 'before', before)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {{before, 0}}
"""

# KEYS: the record, the clock; ARGV: the holder, milliseconds of the lease
_CONFIRM = f"""{STEADY}
local record = redis.call('HMGET', KEYS[1], 'sent', 'holder')
if record[1] or record[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', steady(KEYS[2]) + ARGV[2])
return 1
"""

# KEYS: the record; ARGV: the holder, the outcome, seconds to keep the record
_END = """
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == 'not sent' then
    redis.call('DEL', KEYS[1])
elseif ARGV[2] == 'sent' then
    redis.call('HSET', KEYS[1], 'sent', 1)
    redis.call('EXPIRE', KEYS[1], ARGV[3])
else
    redis.call('HSET', KEYS[1], 'until', 0)
end
return 1
"""


class DeliveryRecord:
    """One attempt at one message to one account."""

    def __init__(self, delivery_id: str) -> None:
        """`delivery_id`: the same for every attempt at this message."""
        self._key = f"cdc:sent:{delivery_id}"
        self._holder = uuid4().hex

    def is_sent(self) -> bool:
        """Return whether the message was sent; raises CacheAwayError."""
        with cache.errors_translated():
            return bool(cache.client().hexists(self._key, "sent"))

    def claim(self) -> Claim:
        """Claim the message; raises NotYetError while another worker's claim holds, and CacheAwayError."""
        with cache.errors_translated():
            outcome, left = cache.client().register_script(_CLAIM)(
                keys=[self._key, CLOCK], args=[self._holder, int(_LEASE * 1000), _KEPT]
            )
        if outcome == b"busy":
            raise NotYetError("Another worker is sending this message, or died doing so.", after=left / 1000)
        return Claim(outcome.decode())

    def confirm(self) -> None:
        """Renew the claim right before the message is sent; raises TryAgain if it is lost, and CacheAwayError.

        This process may have been suspended since: then another worker has claimed the message, or has sent it.
        """
        with cache.errors_translated():
            is_ours = cache.client().register_script(_CONFIRM)(
                keys=[self._key, CLOCK], args=[self._holder, int(_LEASE * 1000)]
            )
        if not is_ours:
            raise TryAgain("Another worker has taken this message over.", after=1)

    def sent(self) -> None:
        """Record that the service took the message: no worker sends it again."""
        self._end("sent")

    def not_sent(self) -> None:
        """Record that the service did not take the message: the next attempt may send it."""
        self._end("not sent")

    def unknown(self) -> None:
        """Record that the outcome is unknown, and end the lease: the next attempt need not wait."""
        self._end("unknown")

    def _end(self, outcome: str) -> None:
        with cache.errors_translated():
            cache.client().register_script(_END)(keys=[self._key], args=[self._holder, outcome, _KEPT])
