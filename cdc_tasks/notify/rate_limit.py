"""How fast messages go out, over all workers: so many a second to a channel and to a service, in the order of commits.

Each account has a lane: its messages, sorted by the position of the change that they are about. Only the first in a
lane may send, and only once its slot has come: the next free moment of its channel, and then of its service. Who must
wait is told for how long, and its task comes back then; no worker waits meanwhile. Redis decides, in one step and by
the steady clock.

The tasks that queue a ticket's messages have a lane too, the ticket's: one that is tried again, or whose worker was
killed, is not overtaken by those of later changes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING, Any

from cdc_tasks import cache
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.changes import position_key
from cdc_tasks.retry import LONGEST_WAIT, NotYetError, TryAgain, may_try_again, seconds_without_spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.app.task import Task

    from cdc_tasks.notify.accounts import Account
    from cdc_tasks.notify.services import Rate

__all__ = ["Turn", "in_turn"]

# Seconds past the time for which a message was expected back. Then it counts as gone, with its worker, and those behind
# it go on. Longer than a task may run, and than the broker needs to bring one back.
_PATIENCE = 75 + LONGEST_STEP

# A lane is a sorted set of messages, and a hash: until when each is waited for, and which slot it has.
# The last key is the clock's. Keys of the pace have a day to live, longer than any wait.
_LANE = f"""{STEADY}
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

# ARGV: me, patience
_EXPECT = f"""{_LANE}
redis.call('ZADD', lane, 'NX', 0, me)
wait_for(me, now)
"""

# KEYS: lane, told, the channel's next free moment, the service's; ARGV: me, patience, milliseconds between two messages
# to the channel, to the service, the longest wait
_TAKE = f"""{_LANE}
redis.call('ZADD', lane, 0, me)
local first = redis.call('ZRANGE', lane, 0, 0)[1]
while first ~= me and tonumber(redis.call('HGET', told, first) or 0) < now do
    forget(first)
    first = redis.call('ZRANGE', lane, 0, 0)[1]
end

local between = {{channel = tonumber(ARGV[3]), service = tonumber(ARGV[4])}}
local function slot(what, key)  -- mine, reserved when I first ask
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
    if between.channel > 0 then wait = slot('channel', KEYS[3]) - now end
    if wait <= 0 and between.service > 0 then wait = slot('service', KEYS[4]) - now end
    if wait <= 0 then  -- some come late, and then the next one is not to come too soon after
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
"""

# KEYS: lane, told, the channel's next free moment; ARGV: me, patience, milliseconds, whether all of the channel waits
_COMES_BACK = f"""{_LANE}
redis.call('HDEL', told, 'channel ' .. me, 'service ' .. me)
wait_for(me, now + ARGV[3])
if ARGV[4] == 'all' and now + ARGV[3] > tonumber(redis.call('GET', KEYS[3]) or 0) then
    redis.call('SET', KEYS[3], now + ARGV[3], 'EX', 86400)
end
"""

# ARGV: me, patience
_LEAVE = f"""{_LANE}
forget(me)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message's place among those to the same account, or one task's among those on the same row."""

    lane: str
    position: str | None  # of the change; without one it goes before the others
    delivery_id: str

    def expect(self) -> None:
        """Say that this message will come: those of later changes wait for it. Raises CacheAwayError."""
        self._run(_EXPECT)

    def take(self, account: Account, rate: Rate) -> None:
        """Go on if this message may be sent now; raises NotYetError, which says when it may, and CacheAwayError."""
        between = (_milliseconds_between(rate.channel), _milliseconds_between(rate.service))
        self._take(between, [_channel(account), f"cdc:pace:{account.service}"])

    def take_freely(self) -> None:
        """Go on if nothing earlier is under way, however fast; raises NotYetError and CacheAwayError."""
        self._take((0, 0), ["cdc:pace:none", "cdc:pace:none"])

    def _take(self, between: tuple[int, int], places: list[str]) -> None:
        wait = self._run(_TAKE, *between, int(LONGEST_WAIT * 1000), more_keys=places)
        if wait > 0:
            raise NotYetError("It is not this one's turn.", after=wait / 1000)

    def comes_back(self, seconds: float, *, hold_up: Account | None = None) -> None:
        """Say that this one is tried again then; nothing goes to the channel of `hold_up` before."""
        what = "this one" if hold_up is None else "all"
        place = "cdc:pace:none" if hold_up is None else _channel(hold_up)
        milliseconds = int(min(max(seconds, 0.001), LONGEST_WAIT) * 1000)
        self._run(_COMES_BACK, milliseconds, what, more_keys=[place])

    def leave(self) -> None:
        """Let those behind it go on: this message is sent, or will never be."""
        self._run(_LEAVE)

    def _run(self, script: str, *arguments: Any, more_keys: list[str] | None = None) -> Any:
        place = position_key(self.position)[1] if self.position else ""
        lane = f"cdc:lane:{self.lane}"
        keys = [lane, f"{lane}:told", *(more_keys or []), CLOCK]
        with cache.errors_translated():
            return cache.client().register_script(script)(
                keys=keys, args=[f"{place} {self.delivery_id}", _PATIENCE * 1000, *arguments]
            )


@contextmanager
def in_turn(turn: Turn, task: Task[Any, Any]) -> Iterator[None]:
    """Begin only when no earlier task of the lane runs, and let later ones wait.

    Raises NotYetError, CacheAwayError.
    """
    turn.take_freely()
    try:
        yield
    except TryAgain as error:
        if may_try_again(error, task.request, task.max_retries):
            turn.comes_back(seconds_without_spread(error, task.request.retries))
        else:
            turn.leave()
        raise
    except Exception:  # whatever it is, this task gives up, and those behind it go on
        turn.leave()
        raise
    turn.leave()


def _milliseconds_between(rate: float) -> int:
    return ceil(1000 / rate) if rate else 0


def _channel(account: Account) -> str:
    """Return the key of what the service limits: several accounts may lead to one channel."""
    to = account.recipient
    channel = to.address or f"{to.secret.get_secret_value()} {to.email}"
    return f"cdc:pace:{account.service}:{sha256(channel.encode()).hexdigest()[:16]}"
