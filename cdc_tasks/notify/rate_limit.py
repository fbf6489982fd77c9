"""The rate limit of messages, over all workers: up to N a second to a channel and to a service, in commit order.

The messages to one account are a message group, sorted by the position of their changes. The broker hands out one
of them at a time, in this order (`cdc_tasks/routing/message_groups.py`). Only the first may be sent, and only at
the time reserved for it: the next free time of its channel, and then of its service. A message that must wait gets the
number of seconds, and its task is rescheduled; the others of its account wait behind it, and no worker blocks. Redis
decides atomically, by the steady clock.

Who is first is asked here, too: a message may have been announced (`expect`), and not be at the broker yet.

The tasks that queue a ticket's messages are a group too. If one is retried, or its worker is killed, the tasks of later
changes do not overtake it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks import cache
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.changes import position_key
from cdc_tasks.notify.delivery_log import CLAIM, END, claimed
from cdc_tasks.retry import MAX_WAIT, NotYetError, TryAgain, may_retry, seconds_without_jitter
from cdc_tasks.routing.message_groups import RANK_HEADER, key_headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery.app.task import Task

    from cdc_tasks.notify.accounts import Account
    from cdc_tasks.notify.delivery_log import Claim, DeliveryRecord
    from cdc_tasks.notify.services import Rate

__all__ = ["GroupMember", "expect", "in_group_order"]

# Seconds after the time at which a message was expected. Then it counts as lost with its worker, and the next ones of
# its group go on. Longer than a task may run, and than the broker needs to deliver it again.
_GRACE = 75 + LONGEST_STEP

# A group is a sorted set of messages (`lane`) and a hash (`told`) with the end of the wait for each, and its reserved
# times. The last key is the clock's. All keys expire after a day, which is longer than any wait.
_GROUP = f"""{STEADY}
local now = steady(KEYS[#KEYS])
local lane, told, me, patience = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local function wait_for(member, back)
    redis.call('HSET', told, member, back + patience)
    redis.call('EXPIRE', told, 86400)
    redis.call('EXPIRE', lane, 86400)
end
local function forget(member)
    redis.call('ZREM', lane, member)
    redis.call('HDEL', told, member, 'channel ' .. member, 'service ' .. member)
end
"""

# KEYS: lane and told of each message, and the clock; ARGV: the messages, and the grace in milliseconds
_EXPECT: Final = f"""{STEADY}
local back = string.format('%.0f', steady(KEYS[#KEYS]) + ARGV[#ARGV])
for i = 1, #ARGV - 1 do
    local lane, told = KEYS[2 * i - 1], KEYS[2 * i]
    redis.call('ZADD', lane, 'NX', 0, ARGV[i])
    redis.call('HSET', told, ARGV[i], back)
    redis.call('EXPIRE', told, 86400)
    redis.call('EXPIRE', lane, 86400)
end
"""

# A function: the milliseconds that the message has to wait, 0 or less if it may be sent now.
# KEYS: lane, told, the next free time of the channel, of the service; ARGV: the message, the grace, milliseconds
# between two messages to the channel, to the service, the longest wait
_ACQUIRING: Final = f"""{_GROUP}
local function acquire()
redis.call('ZADD', lane, 0, me)
local first = redis.call('ZRANGE', lane, 0, 0)[1]
while first ~= me and tonumber(redis.call('HGET', told, first) or 0) < now do
    forget(first)
    first = redis.call('ZRANGE', lane, 0, 0)[1]
end

local between = {{channel = tonumber(ARGV[3]), service = tonumber(ARGV[4])}}
local function reserved(what, key)  -- my time, reserved at my first call
    local mine = tonumber(redis.call('HGET', told, what .. ' ' .. me))
    if mine then return mine end
    mine = math.max(now, tonumber(redis.call('GET', key) or 0))
    redis.call('SET', key, mine + between[what], 'EX', 86400)
    redis.call('HSET', told, what .. ' ' .. me, mine)
    return mine
end

local wait = 0
if first ~= me then
    local back = tonumber(redis.call('HGET', told, first)) - patience
    local overdue = math.min(math.max(now - back, 0), 5000)  -- look less often the longer it is late
    wait = math.max(back - now, 0) + math.max(redis.call('ZRANK', lane, me) * between.channel, 100, overdue)
else
    if between.channel > 0 then wait = reserved('channel', KEYS[3]) - now end
    if wait <= 0 and between.service > 0 then wait = reserved('service', KEYS[4]) - now end
    if wait <= 0 then  -- after a late message the next one must not follow too soon
        local free = redis.call('MGET', KEYS[3] .. ':used', KEYS[4] .. ':used')
        wait = math.max(tonumber(free[1] or 0), tonumber(free[2] or 0)) - now
    end
    if wait <= 0 then
        if between.channel > 0 then redis.call('SET', KEYS[3] .. ':used', now + between.channel, 'EX', 86400) end
        if between.service > 0 then redis.call('SET', KEYS[4] .. ':used', now + between.service, 'EX', 86400) end
    end
end
wait = math.min(wait, tonumber(ARGV[5]))
wait_for(me, now + math.max(wait, 0))
return wait
end
"""

_ACQUIRE: Final = f"{_ACQUIRING} return acquire()"

# A message that was sent before reserves no time. Nor does a repeated call after a lost answer.
# KEYS: as above, and then the delivery record; ARGV: as above, and then what CLAIM needs
_ACQUIRE_AND_CLAIM: Final = f"""{_ACQUIRING}{CLAIM}
local record, holder = KEYS[5], ARGV[6]
local before = claim_before(record, holder)
if before then return before end
local wait = acquire()
if wait > 0 then return {{'wait', wait}} end
local answer = claim(record, holder, now, ARGV[7], ARGV[8])
if answer[1] == 'busy' then
    redis.call('HDEL', told, 'channel ' .. me, 'service ' .. me)
    wait_for(me, now + math.min(answer[2], tonumber(ARGV[5])))
end
return answer
"""

# KEYS: lane, told, the next free time of the channel; ARGV: the message, the grace, milliseconds, whether the whole
# channel waits
_RESCHEDULE = f"""{_GROUP}
redis.call('HDEL', told, 'channel ' .. me, 'service ' .. me)
wait_for(me, now + ARGV[3])
if ARGV[4] == 'all' and now + ARGV[3] > tonumber(redis.call('GET', KEYS[3]) or 0) then
    redis.call('SET', KEYS[3], now + ARGV[3], 'EX', 86400)
end
"""

# ARGV: the message, the grace in milliseconds
_RELEASE = f"""{_GROUP}
forget(me)
"""

# KEYS: lane, told, the delivery record; ARGV: the message, the grace, and then what END needs
_RELEASE_SENT: Final = f"""{_GROUP}{END}
end_claim(KEYS[3], ARGV[3], ARGV[4], ARGV[5])
forget(me)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """One message among those to the same account, or one task among those of the same row."""

    group: str
    position: str | None  # of the change; a message without one comes before the others
    delivery_id: str

    def expect(self) -> None:
        """Announce this message: those of later changes wait for it. Raises CacheAwayError."""
        expect([self])

    def acquire(self, account: Account, rate: Rate, record: DeliveryRecord) -> Claim:
        """Claim this message if it may be sent now, in one step.

        Raises NotYetError with the wait, also while another worker's claim holds, and CacheAwayError.
        """
        between = (_milliseconds_between(rate.channel), _milliseconds_between(rate.service))
        outcome, milliseconds = self._run(
            _ACQUIRE_AND_CLAIM,
            *between,
            int(MAX_WAIT * 1000),
            *record.claim_arguments(),
            more_keys=[_channel(account), f"cdc:pace:{account.service}", record.key],
        )
        if outcome == b"wait":
            raise _not_yet(milliseconds)
        return claimed(outcome, milliseconds)

    def acquire_unlimited(self) -> None:
        """Return if no earlier member of the group is pending, at any rate; raises NotYetError and CacheAwayError."""
        wait = self._run(_ACQUIRE, 0, 0, int(MAX_WAIT * 1000), more_keys=["cdc:pace:none", "cdc:pace:none"])
        if wait > 0:
            raise _not_yet(wait)

    def reschedule(self, seconds: float, *, block_channel_of: Account | None = None) -> None:
        """Announce the retry after `seconds`; until then nothing goes to the channel of `block_channel_of`."""
        what = "this one" if block_channel_of is None else "all"
        next_free = "cdc:pace:none" if block_channel_of is None else _channel(block_channel_of)
        milliseconds = int(min(max(seconds, 0.001), MAX_WAIT) * 1000)
        self._run(_RESCHEDULE, milliseconds, what, more_keys=[next_free])

    def release(self) -> None:
        """Leave the group, so that the next members go on: this message was sent, or never will be."""
        self._run(_RELEASE)

    def release_sent(self, record: DeliveryRecord) -> None:
        """Record that the service took the message, and leave the group, in one step."""
        self._run(_RELEASE_SENT, *record.end_arguments("sent"), more_keys=[record.key])

    @property
    def keys(self) -> list[str]:
        """The keys of the group."""
        lane = f"cdc:lane:{self.group}"
        return [lane, f"{lane}:told"]

    @property
    def headers(self) -> dict[str, Any]:
        """The headers of the message: the broker hands out one of the group at a time, in the group's order."""
        return key_headers(*self.group.split(":", 1)) | {RANK_HEADER: self.name}

    @property
    def name(self) -> str:
        """The member of the sorted set: sorted by position."""
        place = position_key(self.position)[1] if self.position else ""
        return f"{place} {self.delivery_id}"

    def _run(self, script: str, *arguments: Any, more_keys: list[str] | None = None) -> Any:
        keys = [*self.keys, *(more_keys or []), CLOCK]
        with cache.errors_translated():
            return cache.client().register_script(script)(
                keys=keys, args=[self.name, _GRACE * 1000, *arguments]
            )


def expect(members: Iterable[GroupMember]) -> None:
    """Announce these messages in one step: those of later changes wait for them. Raises CacheAwayError."""
    announced = list(members)
    if not announced:
        return
    with cache.errors_translated():
        cache.client().register_script(_EXPECT)(
            keys=[*(key for each in announced for key in each.keys), CLOCK],
            args=[*(each.name for each in announced), _GRACE * 1000],
        )


@contextmanager
def in_group_order(member: GroupMember, task: Task[Any, Any]) -> Iterator[None]:
    """Run the block only if no earlier task of the group is pending; later ones wait for it.

    Raises NotYetError and CacheAwayError.
    """
    member.acquire_unlimited()
    try:
        yield
    except TryAgain as error:
        if may_retry(error, task.request, task.max_retries):
            member.reschedule(seconds_without_jitter(error, task.request.retries))
        else:
            member.release()
        raise
    except Exception:  # the task gives up after any other error, and the next ones go on
        member.release()
        raise
    member.release()


def _not_yet(milliseconds: int) -> NotYetError:
    return NotYetError("Earlier messages, or the rate limit, come first.", after=milliseconds / 1000)


def _milliseconds_between(rate: float) -> int:
    return ceil(1000 / rate) if rate else 0


def _channel(account: Account) -> str:
    """Return the key of the rate-limited channel: several accounts may lead to one."""
    to = account.recipient
    channel = to.address or f"{to.secret.get_secret_value()} {to.email}"
    return f"cdc:pace:{account.service}:{sha256(channel.encode()).hexdigest()[:16]}"
