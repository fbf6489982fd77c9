"""The rate limit of messages, over all workers: up to N a second to a channel and to a service.

A message is sent only at the time reserved for it: the next free time of its channel, and then of its service. A
message that must wait gets the number of seconds, and its task is retried; no worker blocks. Redis decides atomically,
by the steady clock, and claims the message in the same step.

The broker keeps the order: the messages to one account have a key (`cdc_tasks/routing/message_groups.py`), so while one
is retried, the account's later messages wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING, Final

from cdc_tasks import cache, totals
from cdc_tasks.broker.clock import CLOCK, STEADY
from cdc_tasks.notify import message_record
from cdc_tasks.notify.delivery_log import CLAIM, claimed
from cdc_tasks.retry import MAX_WAIT, NotYetError

if TYPE_CHECKING:
    from cdc_tasks.notify.accounts import Account
    from cdc_tasks.notify.delivery_log import Claim, DeliveryRecord
    from cdc_tasks.notify.services import Rate

__all__ = ["Channel"]

# A message's reserved times are in its delivery record. A message that was sent before reserves none, and neither does
# a repeated call after a lost answer. The other keys expire after a day, which is longer than any wait.
# KEYS: the delivery record, the next free time of the channel, of the service, the clock, the totals; ARGV:
# milliseconds between two messages to the channel, to the service, the longest wait, CLAIM's arguments, the field of
# the total, the message's id, its note. After KEYS[5] come the keys of the record of messages.
_ACQUIRE: Final = f"""{STEADY}{CLAIM}{totals.COUNT}{message_record.WAITS}
local record, holder = KEYS[1], ARGV[4]
local before = claim_before(record, holder)
if before then return before end
local now = steady(KEYS[4])
local busy = claimed_by_another(record, now)
if busy then return busy end
local function reserved(what, key, between)  -- my time, reserved at my first call
    local mine = tonumber(redis.call('HGET', record, what))
    if mine then return mine end
    mine = math.max(now, tonumber(redis.call('GET', key) or 0))
    redis.call('SET', key, mine + between, 'EX', 86400)
    redis.call('HSET', record, what, mine)
    redis.call('EXPIRE', record, ARGV[6])
    return mine
end
local channel, service, wait = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
if channel > 0 then wait = reserved('channel', KEYS[2], channel) - now end
if wait <= 0 and service > 0 then wait = reserved('service', KEYS[3], service) - now end
-- After a late message the next one must not follow too soon. It waits once, for both.
local free = redis.call('MGET', KEYS[2] .. ':used', KEYS[3] .. ':used')
wait = math.max(wait, tonumber(free[1] or 0) - now, tonumber(free[2] or 0) - now)
if wait > 0 then
    count(KEYS[5], ARGV[7], 1)
    message_waits(6, ARGV[8], wait, ARGV[9])
    return {{'wait', math.min(wait, tonumber(ARGV[3]))}}
end
if channel > 0 then redis.call('SET', KEYS[2] .. ':used', now + channel, 'EX', 86400) end
if service > 0 then redis.call('SET', KEYS[3] .. ':used', now + service, 'EX', 86400) end
redis.call('HDEL', record, 'channel', 'service')
return claim(record, holder, now, ARGV[5], ARGV[6])
"""

# KEYS: the next free time of the channel, the clock; ARGV: milliseconds
_BLOCK: Final = f"""{STEADY}
local free = steady(KEYS[2]) + ARGV[1]
if free > tonumber(redis.call('GET', KEYS[1]) or 0) then redis.call('SET', KEYS[1], free, 'EX', 86400) end
"""


@dataclass(frozen=True, slots=True)
class Channel:
    """Where an account's messages go. Several accounts may share one channel."""

    service: str
    key: str  # in Redis: its next free time

    @classmethod
    def of(cls, account: Account) -> Channel:
        """Return the channel of this account."""
        to = account.recipient
        name = to.address or f"{to.secret.get_secret_value()} {to.email}"
        return cls(account.service, f"cdc:pace:{account.service}:{sha256(name.encode()).hexdigest()[:16]}")

    def acquire(self, rate: Rate, record: DeliveryRecord) -> Claim:
        """Claim the message of this record in one step, if it may be sent now.

        Raises NotYetError with the wait (also while another worker's claim holds), and CacheAwayError.
        """
        between = (_milliseconds_between(rate.channel), _milliseconds_between(rate.service))
        with cache.errors_translated():
            outcome, milliseconds = cache.client().register_script(_ACQUIRE)(
                keys=[
                    *(record.key, self.key, f"cdc:pace:{self.service}", CLOCK, totals.TOTALS),
                    *message_record.KEYS,
                ],
                args=[
                    *between,
                    int(MAX_WAIT * 1000),
                    *record.claim_arguments(),
                    totals.field("rate_waits", self.service),
                    *(record.id, record.note.text(message_record.RATE_LIMIT) if record.note else ""),
                ],
            )
        if outcome == b"wait":
            raise NotYetError("The rate limit allows no message now.", after=milliseconds / 1000)
        return claimed(outcome, milliseconds)

    def block(self, seconds: float) -> None:
        """Block this channel for some seconds, as the service demands. Raises CacheAwayError."""
        milliseconds = int(min(max(seconds, 0.001), MAX_WAIT) * 1000)
        with cache.errors_translated():
            cache.client().register_script(_BLOCK)(keys=[self.key, CLOCK], args=[milliseconds])


def _milliseconds_between(rate: float) -> int:
    return ceil(1000 / rate) if rate else 0
