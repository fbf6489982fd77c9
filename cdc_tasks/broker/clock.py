"""A clock that no step of a machine's clock moves, for scripts that have to know how long ago something was.

Redis has no monotonic clock. So `cdc:clock` has what Redis' clock said when a script looked last, and how much time had
passed by then. A script adds what has passed since, LONGEST_STEP at most: a step ahead counts for that much, and a step
back for nothing, as does a failover to a machine with another clock. A while in which nobody looks counts for that much
too. So every worker looks every few seconds (`Ticking`), and what is measured has LONGEST_STEP to spare.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

import redis
import structlog
from celery.bootsteps import StartStopStep

from cdc_tasks.settings import RedisSettings, load

__all__ = ["CLOCK", "LONGEST_STEP", "STEADY", "Ticking"]

CLOCK: Final = "cdc:clock"
LONGEST_STEP: Final = 15  # seconds
_EVERY: Final = 5  # seconds
_REST: Final = 30  # seconds after Redis was away: to look costs a worker's main process a second then

log = structlog.get_logger()

# A part of scripts: steady(KEYS[…]) returns milliseconds that have passed since some moment.
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

_TICK: Final = f"{STEADY} return steady(KEYS[1])"


class Ticking(StartStopStep):
    """Looks at the clock every few seconds, so that it goes on while no task does."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._rests_until = float("-inf")
        self._script: Any = None

    def start(self, consumer: Any) -> None:
        """Begin; after a lost connection to the broker, again."""
        self.stop(consumer)
        self._timer = consumer.timer.call_repeatedly(_EVERY, self._tick)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  # Celery's signature
        """End."""
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
            # Not the tasks' client: the event loop waits meanwhile, and may not for long.
            client = redis.Redis.from_url(
                load(RedisSettings).cache_url.get_secret_value(),
                socket_timeout=1,
                socket_connect_timeout=1,
                retry=None,
            )
            self._script = client.register_script(_TICK)
        return self._script
