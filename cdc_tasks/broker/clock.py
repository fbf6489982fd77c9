"""A clock in Redis that ignores steps of the machines' clocks, for scripts that measure how long ago something was.

Redis has no monotonic clock. So `cdc:clock` keeps the time of Redis' clock when a script last read it, and how much
time had passed by then. A script adds the time since then, up to LONGEST_STEP. A step ahead counts for up to
LONGEST_STEP. A step back counts for nothing, and so does a failover to a machine whose clock is behind.

A long time without a reading also counts for LONGEST_STEP only. So every worker reads the clock every few seconds
(`Ticking`), and scripts that measure with it allow an error of LONGEST_STEP.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

import redis
import structlog
from celery.bootsteps import StartStopStep

from cdc_tasks.cache import make_client

__all__ = ["CLOCK", "LONGEST_STEP", "PASSED", "STEADY", "Ticking"]

CLOCK: Final = "cdc:clock"
LONGEST_STEP: Final = 15  # seconds
_EVERY: Final = 10  # seconds
_REST: Final = (
    30  # seconds without a reading after an error, which may have blocked the main process for a second
)

log = structlog.get_logger()

# A function for scripts: steady(KEYS[…]) returns the milliseconds since an arbitrary moment.
STEADY: Final = f"""
local function steady(key)
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local clock = redis.call('HMGET', key, 'seen', 'passed')
    local since = now - (tonumber(clock[1]) or now)
    local passed = (tonumber(clock[2]) or now) + math.min(math.max(since, 0), {LONGEST_STEP * 1000})
    redis.call('HSET', key, 'seen', string.format('%.0f', now), 'passed', string.format('%.0f', passed))
    return passed
end
"""

# The same for waits of hours or days, which continue while no one reads the clock, e.g. while all workers are down.
# A function for scripts: passed(KEYS[…], elapsed) returns the milliseconds since an arbitrary moment. `elapsed` is the
# upper limit of the time since the last reading: the milliseconds since the caller's own last reading, by its monotonic
# clock. So a step of Redis' clock counts for up to a second. A caller without an earlier reading passes -1: then Redis'
# clock is trusted.
PASSED: Final = """
local function passed(key, elapsed)
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local clock = redis.call('HMGET', key, 'seen', 'passed')
    local since = math.max(now - (tonumber(clock[1]) or now), 0)
    if elapsed >= 0 then since = math.min(since, elapsed + 1000) end
    local total = (tonumber(clock[2]) or now) + since
    redis.call('HSET', key, 'seen', string.format('%.0f', now), 'passed', string.format('%.0f', total))
    return total
end
"""

_TICK: Final = f"{STEADY} return steady(KEYS[1])"


class Ticking(StartStopStep):
    """Reads the clock every few seconds, so that it continues while no task runs."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._rests_until = float("-inf")
        self._script: Any = None

    def start(self, consumer: Any) -> None:
        """Start the timer, also after each reconnection to the broker."""
        self.stop(consumer)
        self._timer = consumer.timer.call_repeatedly(_EVERY, self._tick)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  # Celery's signature
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        if monotonic() < self._rests_until:
            return
        try:
            self._tick_script()(keys=[CLOCK])
        except (redis.RedisError, OSError) as error:
            log.debug("steady_clock_not_read", error=repr(error))
            self._rests_until = monotonic() + _REST

    def _tick_script(self) -> Any:
        if self._script is None:
            # Not the tasks' client, whose time-outs are longer: this call blocks the event loop.
            client = make_client(socket_timeout=1, socket_connect_timeout=1, retry=None)
            self._script = client.register_script(_TICK)
        return self._script
