"""Tasks on one row may run out of order; with these, an older change never overwrites what a newer one did.

A retried task goes to the back of its queue, and two workers may have two changes of one row at a time. So positions
are compared where the effect is, and not before:

    with latest_only(f"search:{change.row['id']}", change) as is_latest:
        if is_latest:
            search.index(change.row)

    store_latest(f"price:{change.row['id']}", change.row["price"], change)  # in Redis, in one step
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cdc_tasks import cache
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP, STEADY
from cdc_tasks.changes import position_key
from cdc_tasks.retry import NotYetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import RowChange

__all__ = ["latest_only", "store_latest"]

_HELD = 65 + LONGEST_STEP  # seconds; above the task's time limit: who began earlier has ended, or is dead
_KEPT = 7 * 24 * 3600  # seconds; a change that comes later than this is taken for new

# Places of one log compare; those of different logs do not, and then the time of the commit has to do. So it has for a
# place of an earlier generation (the first eight digits): it is a late change, or one of a listener that lost its
# checkpoint, and with it the number of its generation.
_COMPARE = """
local record = redis.call('HMGET', KEYS[1], 'log', 'place', 'committed', 'holder', 'until')
local function is_newer()
    if not record[1] then return true end
    local is_earlier = string.sub(ARGV[2], 1, 8) < string.sub(record[2], 1, 8)
    if record[1] == ARGV[1] and not is_earlier then return ARGV[2] > record[2] end
    return ARGV[3] > record[3]
end
local function note()
    redis.call('HSET', KEYS[1], 'log', ARGV[1], 'place', ARGV[2], 'committed', ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[4])
end
"""

# KEYS: the record, the clock; ARGV: log, place, time of commit, seconds to keep it, who asks, milliseconds to hold it
_BEGIN = f"""{STEADY}{_COMPARE}
local now = steady(KEYS[2])
if not is_newer() then return {{'stale', 0}} end
local held = record[5] and record[4] ~= ARGV[5] and tonumber(record[5]) - now or 0
if held > 0 then return {{'busy', held}} end
redis.call('HSET', KEYS[1], 'holder', ARGV[5], 'until', now + ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {{'latest', 0}}
"""

# KEYS: the record; ARGV: log, place, time of commit, seconds to keep it, who asks, whether it is done
_END = f"""{_COMPARE}
if record[4] ~= ARGV[5] then return 0 end
if ARGV[6] == 'done' and is_newer() then note() end
redis.call('HDEL', KEYS[1], 'holder', 'until')
return 1
"""

# KEYS: the record, the value's key; ARGV: log, place, time of commit, seconds to keep it, the value, if there is one
_STORE = f"""{_COMPARE}
if not is_newer() then return 0 end
if ARGV[5] then redis.call('SET', KEYS[2], ARGV[5]) else redis.call('DEL', KEYS[2]) end
note()
return 1
"""


@contextmanager
def latest_only(key: str, change: RowChange) -> Iterator[bool]:
    """Tell whether `change` is newer than all that was done for `key`; hold others off until the block ends.

    An exception in the block leaves the change undone: whoever comes next, it or an older one, may do it. Raises
    NotYetError while another worker is at the same key, and CacheAwayError: let them pass, the task is tried again.
    """
    holder = uuid4().hex
    said, held = _run(_BEGIN, key, change, holder, int(_HELD * 1000), also=CLOCK)
    if said == b"busy":
        raise NotYetError("Another worker is at it.", after=min(held / 1000, 0.5))
    if said == b"stale":
        yield False
        return
    try:
        yield True
    except BaseException:
        _run(_END, key, change, holder, "not done")
        raise
    _run(_END, key, change, holder, "done")


def store_latest(key: str, value: str | bytes | float | None, change: RowChange) -> bool:
    """Set a key in CACHE_URL's Redis (None: delete it), unless a newer change did; tells whether. Raises CacheAwayError."""
    return bool(_run(_STORE, key, change, *([] if value is None else [value]), also=key))


def _run(
    script: str, key: str, change: RowChange, *more: str | bytes | float, also: str | None = None
) -> Any:
    log, place = position_key(change.position)
    if not log:  # PostgreSQL: which cluster it is, is in the id alone
        log = change.id.partition("-")[0]
    keys = [f"cdc:latest:{key}", *([also] if also else [])]
    with cache.errors_translated():
        return cache.client().register_script(script)(
            keys=keys, args=[log, place, f"{change.committed_at.timestamp():020.6f}", _KEPT, *more]
        )
