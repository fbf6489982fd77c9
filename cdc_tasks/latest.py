"""The newest change wins: tasks on one row may run out of order, and an older change must not overwrite a newer one.

A retried task goes to the end of its queue, and two workers may have two changes of one row at the same time. So
compare the positions where the effect happens, not earlier:

    with latest_only(f"search:{change.row['id']}", change) as is_latest:
        if is_latest:
            search.index(change.row)

    store_latest(f"price:{change.row['id']}", change.row["price"], change)  # in Redis, atomically
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

_LEASE = (
    65 + LONGEST_STEP
)  # seconds; above the task's time limit: a worker with an older lease has finished, or is dead
_KEPT = 7 * 24 * 3600  # seconds; after that a late change counts as new

# Places in one log compare. Places in different logs do not: then the commit time decides. It also decides for a place
# of an earlier generation (the first eight digits): a late change, or a change from a listener that lost its checkpoint
# and the number of its generation.
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

# KEYS: the record, the clock; ARGV: log, place, time of commit, seconds to keep it, the holder, its lease in ms
_BEGIN = f"""{STEADY}{_COMPARE}
local now = steady(KEYS[2])
if not is_newer() then return {{'stale', 0}} end
local left = record[5] and record[4] ~= ARGV[5] and tonumber(record[5]) - now or 0
if left > 0 then return {{'busy', left}} end
redis.call('HSET', KEYS[1], 'holder', ARGV[5], 'until', now + ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {{'latest', 0}}
"""

# KEYS: the record; ARGV: log, place, time of commit, seconds to keep it, the holder, whether it is done
_END = f"""{_COMPARE}
if record[4] ~= ARGV[5] then return 0 end
if ARGV[6] == 'done' and is_newer() then note() end
redis.call('HDEL', KEYS[1], 'holder', 'until')
return 1
"""

# KEYS: the record, the value's key; ARGV: log, place, time of commit, seconds to keep it, the value if there is one
_STORE = f"""{_COMPARE}
if not is_newer() then return 0 end
if ARGV[5] then redis.call('SET', KEYS[2], ARGV[5]) else redis.call('DEL', KEYS[2]) end
note()
return 1
"""


@contextmanager
def latest_only(key: str, change: RowChange) -> Iterator[bool]:
    """Yield whether `change` is newer than every change that was done for `key`; lock the key until the block ends.

    If the block raises, the change counts as not done, and even an older change may be done next. Raises NotYetError
    while another worker has the key, and CacheAwayError. Do not catch them: the task is retried.
    """
    holder = uuid4().hex
    outcome, left = _run(_BEGIN, key, change, holder, int(_LEASE * 1000), also=CLOCK)
    if outcome == b"busy":
        raise NotYetError("Another worker has this key.", after=min(left / 1000, 0.5))
    if outcome == b"stale":
        yield False
        return
    try:
        yield True
    except BaseException:
        _run(_END, key, change, holder, "not done")
        raise
    _run(_END, key, change, holder, "done")


def store_latest(key: str, value: str | bytes | float | None, change: RowChange) -> bool:
    """Set a key in CACHE_URL's Redis (None: delete it), unless a newer change has set it. Return whether it was set.

    Raises CacheAwayError.
    """
    return bool(_run(_STORE, key, change, *([] if value is None else [value]), also=key))


def _run(
    script: str, key: str, change: RowChange, *more: str | bytes | float, also: str | None = None
) -> Any:
    log, place = position_key(change.position)
    if not log:  # PostgreSQL: only the id names the cluster
        log = change.id.partition("-")[0]
    keys = [f"cdc:latest:{key}", *([also] if also else [])]
    with cache.errors_translated():
        return cache.client().register_script(script)(
            keys=keys, args=[log, place, f"{change.committed_at.timestamp():020.6f}", _KEPT, *more]
        )
