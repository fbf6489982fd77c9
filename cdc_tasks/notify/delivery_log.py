"""The record of what was sent: one message to one account is sent once, whoever tries, and however often.

A record goes from held to sent. Redis changes it, in one step, so that two workers with the same message cannot both
begin. A worker that dies in between leaves it held, with a time of the steady clock until which that counts; after it
nobody knows whether the message went out, and CDC_LOST_ANSWER decides.
"""

from __future__ import annotations

from enum import StrEnum
from uuid import uuid4

from cdc_tasks import cache
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.retry import NotYetError, TryAgain

__all__ = ["Claim", "SendRecord"]

_HELD = 65 + LONGEST_STEP  # seconds; above the task's time limit: who began earlier has ended, or is dead
_KEPT = 7 * 24 * 3600  # seconds; a change that is replayed later than this is sent again


class Claim(StrEnum):
    """What the record said to the one who wants to send."""

    FREE = "free"  # nobody has tried: send
    SENT = "sent"  # don't
    UNKNOWN = "unknown"  # somebody tried, and it is not known what came of it; the record is now ours


# KEYS: the record, the clock; ARGV: who asks, milliseconds to hold it, seconds to keep it
_CLAIM = f"""{STEADY}
local now = steady(KEYS[2])
local record = redis.call('HMGET', KEYS[1], 'sent', 'until', 'holder', 'before')
if record[1] then return {{'sent', 0}} end
if record[3] == ARGV[1] then return {{record[4], 0}} end  -- the answer got lost, and the client asked again
local held = record[2] and tonumber(record[2]) - now or 0
if held > 0 then return {{'busy', held}} end
local before = record[2] and 'unknown' or 'free'
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', now + ARGV[2], 'before', before)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {{before, 0}}
"""

# KEYS: the record, the clock; ARGV: who asks, milliseconds to hold it
_CONFIRM = f"""{STEADY}
local record = redis.call('HMGET', KEYS[1], 'sent', 'holder')
if record[1] or record[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', steady(KEYS[2]) + ARGV[2])
return 1
"""

# KEYS: the record; ARGV: who asks, what came of it, seconds to keep it
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


class SendRecord:
    """One attempt at one message to one account."""

    def __init__(self, delivery_id: str) -> None:
        """`delivery_id`: the same for every attempt at this message."""
        self._key = f"cdc:sent:{delivery_id}"
        self._holder = uuid4().hex

    def is_sent(self) -> bool:
        """Tell whether the service has it for certain; raises CacheAwayError."""
        with cache.errors_translated():
            return bool(cache.client().hexists(self._key, "sent"))

    def claim(self) -> Claim:
        """Begin to send, if nobody else has; raises NotYetError while another worker is at it, and CacheAwayError."""
        with cache.errors_translated():
            said, held = cache.client().register_script(_CLAIM)(
                keys=[self._key, CLOCK], args=[self._holder, int(_HELD * 1000), _KEPT]
            )
        if said == b"busy":
            raise NotYetError("Another worker is sending this message, or died doing so.", after=held / 1000)
        return Claim(said.decode())

    def confirm(self) -> None:
        """Ask right before the call whether the claim still holds; raises TryAgain, and CacheAwayError.

        This process may have stood still since: then another worker has the message, or has sent it already.
        """
        with cache.errors_translated():
            is_ours = cache.client().register_script(_CONFIRM)(
                keys=[self._key, CLOCK], args=[self._holder, int(_HELD * 1000)]
            )
        if not is_ours:
            raise TryAgain("Another worker has taken this message over.", after=1)

    def sent(self) -> None:
        """Note that the service took it: nobody sends it again."""
        self._end("sent")

    def not_sent(self) -> None:
        """Note that the service did not take it: the next attempt is free to send."""
        self._end("not sent")

    def unknown(self) -> None:
        """Note that nobody knows; the next attempt need not wait to learn that."""
        self._end("unknown")

    def _end(self, outcome: str) -> None:
        with cache.errors_translated():
            cache.client().register_script(_END)(keys=[self._key], args=[self._holder, outcome, _KEPT])
