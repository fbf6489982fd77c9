"""What a worker holds of a Redis broker's messages, and how that of a worker that is gone comes back."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["QoS"]

_AT_ONCE: Final = 100  # messages of dead workers that go back in one sweep

logger = get_logger(__name__)

# KEYS: unacked_index; ARGV: delivery tags
_RENEW = """
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', now, tag) end
"""

# KEYS: unacked, unacked_index; ARGV: the visibility timeout in seconds, how many
_ABANDONED = """
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', redis.call('TIME')[1] - ARGV[1], 'LIMIT', 0, ARGV[2])
local found = {}
for _, tag in ipairs(tags) do
    local message = redis.call('HGET', KEYS[1], tag)
    if message then
        table.insert(found, tag)
        table.insert(found, message)
        table.insert(found, redis.call('ZSCORE', KEYS[2], tag))
    else
        redis.call('ZREM', KEYS[2], tag)
    end
end
return found
"""

# KEYS: unacked, unacked_index, queues; ARGV: a delivery tag, the score that it had, the message to go back
_GIVE_BACK = """
if redis.call('ZSCORE', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end  -- somebody has spoken for it
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
for i = 3, #KEYS do redis.call('RPUSH', KEYS[i], ARGV[3]) end
return 1
"""


class QoS(kombu_redis.QoS):
    """What a worker holds."""

    channel: Any  # the stubs know public things only
    _delivered: Any
    _dirty: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._swept_at = float("-inf")

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message as held; one that was claimed is in `unacked` already."""
        if delivery_tag == self.channel.claimed:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def renew(self) -> None:
        """Say that this worker still holds what it holds."""
        held = [tag for tag in list(self._delivered) if tag not in self._dirty]
        for start in range(0, len(held), 1000):
            self._run(_RENEW, [self.unacked_index_key], held[start : start + 1000])

    def restore_unacked(self, client: Any = None) -> None:
        """Give back what is held. Where Redis is away, it comes back when nobody speaks for it any more."""
        try:
            super().restore_unacked(client)
        # The last one of them: kombu has no connection any more.
        except (redis.RedisError, OSError, AttributeError) as error:
            logger.warning("Redis is away; what this worker held comes back in a while (%r)", error)
        self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:  # noqa: ARG002
        """Give back what workers held that are gone; any worker does it for all."""
        if monotonic() - self._swept_at < self.channel.unacked_restore_interval:
            return
        self._swept_at = monotonic()
        keys = [self.unacked_key, self.unacked_index_key]
        found = self._run(_ABANDONED, keys, [int(self.visibility_timeout), _AT_ONCE])
        for tag, held, score in zip(found[::3], found[1::3], found[2::3], strict=True):
            message, exchange, routing_key = loads(bytes_to_str(held))
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            queues = self.channel.places(message, exchange, routing_key)
            if self._run(_GIVE_BACK, [*keys, *queues], [tag, score, dumps(message)]):
                logger.warning(
                    "a worker is gone; its task is back in the queue: %s", message["headers"].get("id")
                )

    def _run(self, script: str, keys: Iterable[str], arguments: Iterable[Any]) -> Any:
        # Not with the channel's own client, which would put the prefix before the first key alone.
        plain = redis.Redis(connection_pool=self.channel.pool)
        prefixed = [f"{self.channel.global_keyprefix}{key}" for key in keys]
        return plain.register_script(script)(keys=prefixed, args=list(arguments))
