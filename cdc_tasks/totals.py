"""Totals of all workers, counted in Redis: one number for all processes.

A prefork worker's processes start and stop, so they cannot serve their own numbers. If a worker runs a script in Redis
anyway, the script also counts: a message that was delivered or had to wait, a task that gave up. Retries go to the
broker: `cdc_tasks/worker/retry_counts.py` counts them. The listener's `/metrics` reads the hash.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COUNT", "TOTALS", "field", "parse"]

TOTALS: Final = "cdc:totals"  # a hash: field (see `field`), number
_MOST: Final = 1_000  # fields: anyone's messages may name any task

# A function for scripts.
COUNT: Final = f"""
local function count(totals, name, number)
    if redis.call('HGET', totals, name) or redis.call('HLEN', totals) < {_MOST} then
        redis.call('HINCRBY', totals, name, number)
    end
end
"""


def field(what: str, of: str) -> str:
    """Return the hash's field for the total `what`, counted by `of`."""
    return f"{what} {of}"


def parse(name: str) -> tuple[str, str]:
    """Return the arguments from which `field` made this name."""
    what, _, of = name.partition(" ")
    return what, of
