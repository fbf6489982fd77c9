"""The delivery log: a message to an account is sent once, however many workers try, and however often.

A worker claims a message before it sends it, and marks it as sent afterwards. Redis does each in one atomic step, so
two workers with the same message cannot both send it. A claim is a lease by the steady clock. If the worker dies, the
lease expires: then it is unknown whether the message was sent, and CDC_LOST_ANSWER decides.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from cdc_tasks import cache, totals
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.notify import message_record
from cdc_tasks.retry import NotYetError, TryAgain
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from cdc_tasks.notify.message_record import MessageNote

__all__ = ["CLAIM", "Claim", "DeliveryRecord", "claimed"]

_LEASE = (
    65 + LONGEST_STEP
)  # seconds; above the task's time limit: a worker with an older claim has finished, or is dead
_FRESH: Final = 1.0  # seconds; an older claim is confirmed before the message is sent
_KEPT = 7 * 24 * 3600  # seconds; a change that is replayed later than this is sent again


class Claim(StrEnum):
    """The answer to a worker that is about to send."""

    FREE = "free"  # no worker has tried: send
    SENT = "sent"  # do not send
    UNKNOWN = "unknown"  # a worker tried, with unknown outcome; the claim is now ours


# Functions for scripts. claim_before: the answer if there is nothing to do; claimed_by_another: the answer while
# another worker's claim holds; claim: takes the record. Each answers with an outcome, and the milliseconds until that
# claim ends.
CLAIM: Final = """
local function claim_before(record, holder)
    local found = redis.call('HMGET', record, 'sent', 'holder', 'before')
    if found[1] then return {'sent', 0} end
    if found[2] == holder then return {found[3], 0} end  -- the answer was lost, and the client repeats the call
end
local function claimed_by_another(record, now)
    local till = tonumber(redis.call('HGET', record, 'until'))
    if till and till > now then return {'busy', till - now} end
end
local function claim(record, holder, now, lease, kept)
    local till = redis.call('HGET', record, 'until')
    local before = till and 'unknown' or 'free'
    redis.call('HSET', record, 'holder', holder, 'until', now + lease, 'before', before)
    redis.call('EXPIRE', record, kept)
    return {before, 0}
end
"""

# KEYS: the record, the clock; ARGV: the holder, milliseconds of the lease, seconds to keep the record
_CLAIM: Final = f"""{STEADY}{CLAIM}
local now = steady(KEYS[2])
return claim_before(KEYS[1], ARGV[1]) or claimed_by_another(KEYS[1], now)
    or claim(KEYS[1], ARGV[1], now, ARGV[2], ARGV[3])
"""

# KEYS: the record, the clock; ARGV: the holder, milliseconds of the lease
_CONFIRM = f"""{STEADY}
local record = redis.call('HMGET', KEYS[1], 'sent', 'holder')
if record[1] or record[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', steady(KEYS[2]) + ARGV[2])
return 1
"""

# KEYS: the record, the totals, those of the record of messages; ARGV: the holder, the outcome, seconds to keep the
# record, the field of its total, the message's id, how many messages to keep, the note
_END: Final = f"""{totals.COUNT}{message_record.ENDED}
local record, holder, outcome = KEYS[1], ARGV[1], ARGV[2]
local found = redis.call('HGET', record, 'holder')
if found and found ~= holder then return end
if outcome == 'not sent' then
    redis.call('DEL', record)
elseif outcome == 'sent' then
    if redis.call('HSET', record, 'sent', 1) == 1 then
        count(KEYS[2], ARGV[4], 1)
        message_ended(3, ARGV[5], ARGV[6], ARGV[7])
    end
    redis.call('EXPIRE', record, ARGV[3])
else
    redis.call('HSET', record, 'until', 0)
end
"""


class DeliveryRecord:
    """One attempt at one message to one account."""

    def __init__(self, delivery_id: str, note: MessageNote | None = None) -> None:
        """`delivery_id`: the same for every attempt at this message. `note`: for the record of messages."""
        self.id = delivery_id
        self.note = note
        self.key = f"cdc:sent:{delivery_id}"
        self.holder = uuid4().hex
        self._asked_at = monotonic()

    def claim_arguments(self) -> list[str | int]:
        """Return what a script with CLAIM needs: the holder, milliseconds of the lease, seconds to keep the record."""
        self._asked_at = monotonic()
        return [self.holder, int(_LEASE * 1000), _KEPT]

    def claim(self) -> Claim:
        """Claim the message. Raises NotYetError while another worker's claim holds, and CacheAwayError."""
        with cache.errors_translated():
            outcome, left = cache.client().register_script(_CLAIM)(
                keys=[self.key, CLOCK], args=self.claim_arguments()
            )
        return claimed(outcome, left)

    def confirm_if_old(self) -> None:
        """Confirm the claim if it is not recent; raises the same as `confirm`."""
        if monotonic() - self._asked_at > _FRESH:
            self.confirm()

    def confirm(self) -> None:
        """Renew the claim before the message is sent. Raises TryAgain if it is lost, and CacheAwayError.

        If this process was suspended meanwhile, another worker may have claimed or sent the message.
        """
        with cache.errors_translated():
            is_ours = cache.client().register_script(_CONFIRM)(
                keys=[self.key, CLOCK], args=[self.holder, int(_LEASE * 1000)]
            )
        if not is_ours:
            raise TryAgain("Another worker has taken over this message.", after=1)

    def sent(self, service: str) -> None:
        """Record that the service took the message: no worker sends it again."""
        self._end("sent", service)

    def not_sent(self) -> None:
        """Record that the service did not take the message: the next attempt may send it."""
        self._end("not sent")

    def unknown(self) -> None:
        """Record that the outcome is unknown, and end the lease, so that the next attempt does not wait."""
        self._end("unknown")

    def _end(self, outcome: str, service: str = "") -> None:
        with cache.errors_translated():
            cache.client().register_script(_END)(
                keys=[self.key, totals.TOTALS, *message_record.KEYS],
                args=[
                    *(self.holder, outcome, _KEPT, totals.field("delivered", service)),
                    *(self.id, *self._kept(outcome)),
                ],
            )

    def _kept(self, outcome: str) -> tuple[int, str]:
        """Return how many messages the record keeps, and the note. Other outcomes are recorded with their error."""
        if self.note is None or outcome != "sent":
            return 0, ""
        return worker_settings().cdc_messages_kept, self.note.text(message_record.SENT)


def claimed(outcome: bytes, left: int) -> Claim:
    """Return the answer of a script with CLAIM. Raises NotYetError while another worker's claim holds."""
    if outcome == b"busy":
        raise NotYetError(
            "Another worker is sending this message, or died while sending it.", after=left / 1000
        )
    return Claim(outcome.decode())
