"""What workers have done so far, counted in Redis: one number for all processes of all workers.

A prefork worker's processes come and go, so none of them can serve numbers of its own. Where a worker talks to Redis
anyway, the script that it runs counts too: a message delivered or made to wait, a task that gave up. Retries go to the
broker: `cdc_tasks/worker/retry_counts.py` counts them. The listener's `/metrics` reads the hash.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COUNT", "TOTALS", "field", "parse"]

TOTALS: Final = "cdc:totals"  # a hash: what and of what, number
_MOST: Final = 1_000  # fields: messages of anybody may name any task

# A function for scripts.
COUNT: Final = f"""
local function count(totals, name, number)
    if redis.call('HGET', totals, name) or redis.call('HLEN', totals) < {_MOST} then
        redis.call('HINCRBY', totals, name, number)
    end
end
"""


def field(what: str, of: str) -> str:
    """Return the hash's field for this."""
    return f"{what} {of}"


def parse(name: str) -> tuple[str, str]:
    """Return what `field` was made of."""
    what, _, of = name.partition(" ")
    return what, of
