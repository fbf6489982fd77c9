"""A worker's unacknowledged messages on a Redis broker, and the restoring of a dead worker's messages.

Each channel that takes messages has a lease with a NAME. `cdc:unacked:NAME` has its unacknowledged messages by their
delivery tags, and `cdc:unacked_index:NAME` has the tags in the order in which the messages were taken. `cdc:leases` has
a counter for each lease. The counter increases with every message that is taken, and every few seconds while the
channel has unacknowledged messages.

For each queue at which a channel waits it has an inbox, `cdc:inbox:NAME:QUEUE`, which has its own lease, `NAME QUEUE`.
That lease is renewed right before each wait, so no message arrives in an inbox without a lease. A channel that closes
in order does not delete the leases of its inboxes, because a message may still arrive. Other workers delete them when
they expire.

The keys of kombu's own transport (`unacked`, …) belong to other applications' workers, and we do not touch them.
"""

from __future__ import annotations

import json
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

import redis
from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import NoScriptError

from cdc_tasks.broker.redis.later import LATER
from cdc_tasks.broker.redis.leases import Lease, Observer
from cdc_tasks.broker.redis.message_groups import Keyed, key_in, release_command
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters.malformed_messages import SHAPE_ERRORS, keep_malformed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LEASES", "MADE_UP_TAG", "Acknowledgements", "QoS", "index_key", "unacked_key"]

LEASES: Final = "cdc:leases"
MADE_UP_TAG: Final = "malformed-"  # prefix of the tag of a message without kombu's envelope
_AT_ONCE: Final = 1000  # messages in a command
_KEPT: Final = 300  # seconds until the lists of an unfinished sweep expire

logger = get_logger(__name__)

# Moves the messages of a list to the consumers' end of a queue; the oldest is taken first.
_MOVE = """
local function move(from, to)
    local number = redis.call('LLEN', from)
    for start = 0, number - 1, 500 do
        redis.call('RPUSH', to, unpack(redis.call('LRANGE', from, start, start + 499)))
    end
    redis.call('DEL', from)
    return number
end
"""

# KEYS: leases, unacked, its index, then pairs of a list and its queue: first the inboxes, whose messages are newer than
# those that were taken, then the lists of messages that go back
# ARGV: the lease, the counter that was read, how many unacknowledged messages it had then, the index in KEYS of the
# first list after the inboxes
# A script that fails is not rolled back: so it first checks everything that could fail.
_GIVE_BACK = f"""{_MOVE}
local function refuse(answer)
    for i = tonumber(ARGV[4]), #KEYS, 2 do redis.call('DEL', KEYS[i]) end
    return answer
end
local same = redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and redis.call('ZCARD', KEYS[3]) == tonumber(ARGV[3])
if not same then return refuse(0) end
for i = 5, #KEYS, 2 do
    local kind = redis.call('TYPE', KEYS[i]).ok
    if kind ~= 'list' and kind ~= 'none' then
        return refuse(redis.error_reply('WRONGTYPE of ' .. KEYS[i] .. ': ' .. kind))
    end
end
for i = 4, #KEYS, 2 do move(KEYS[i], KEYS[i + 1]) end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
"""

# KEYS: an inbox, its queue, leases; ARGV: the inbox's lease, the counter that was read, empty if the lease continues
_EMPTY_INBOX = f"""{_MOVE}
if ARGV[2] ~= '' then
    if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
    redis.call('HDEL', KEYS[3], ARGV[1])
end
return move(KEYS[1], KEYS[2])
"""


def unacked_key(lease: str) -> str:
    """Return the key of the hash with the unacknowledged messages of a lease, by delivery tags."""
    return f"cdc:unacked:{lease}"


def index_key(lease: str) -> str:
    """Return the key of the sorted set with the delivery tags, in the order in which the messages were taken."""
    return f"cdc:unacked_index:{lease}"


def inbox_key(lease: str, queue: str) -> str:
    """Return the key of the list that gets a message of this queue while the worker waits for one."""
    return f"cdc:inbox:{lease}:{queue}"


def inbox_lease(lease: str, queue: str) -> str:
    """Return the name of an inbox's own lease."""
    return f"{lease} {queue}"


class Acknowledgements(NamedTuple):
    """Messages that were acknowledged, and the commands for Redis."""

    tags: list[str]
    keyed: list[Keyed]
    commands: list[list[Any]]


class QoS(kombu_redis.QoS):
    """The unacknowledged messages of one channel, and the sweep for those of dead workers."""

    channel: Any  # the stubs know public things only
    _delivered: Any
    _dirty: Any
    _remove_from_indices: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._acknowledged: dict[str, None] = {}  # delivery tags whose deletion Redis has not confirmed
        self._keyed: dict[str, Keyed] = {}  # the same for messages with a key
        super().__init__(*args, **kwargs)
        self._swept_at = float("-inf")
        self._held: set[str] = set()  # delivery tags: these keep their key when they are acknowledged
        interval = self.channel.unacked_restore_interval
        self._observer = Observer(timeout=self.visibility_timeout, longest_step=2 * interval)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Add an unacknowledged message; a claimed one is already in `unacked`."""
        if delivery_tag == self.channel.claimed:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)
            self._count_up()

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; in a worker's event loop the acknowledgement is sent with the next claim."""
        connection, key = self.channel.connection, self._key_of(delivery_tag)
        if connection is None:  # the channel is closed, and has given the message back
            self._held.discard(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
            return
        if key is not None:
            self._keyed[delivery_tag] = Keyed(delivery_tag, key, delivery_tag in self._held)
            self.channel.look_again()  # the claim that is sent with it finds the next message of the key
            self._held.discard(delivery_tag)
        elif connection.loop is not None:
            self._acknowledged[delivery_tag] = None
        else:
            super().ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)
        if connection.loop is None:
            self.acknowledge_now()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Give a message back to its queue, where it keeps its key; or drop it."""
        self._held.discard(delivery_tag)
        if requeue or self._key_of(delivery_tag) is None:
            super().reject(delivery_tag, requeue=requeue)
        else:
            self.ack(delivery_tag)

    def hold_key(self, delivery_tag: str) -> None:
        """Mark a message to keep its key when it is acknowledged: its task has failed, and a person decides."""
        self._held.add(delivery_tag)

    def forget(self, delivery_tag: str, content: bytes | str) -> None:
        """Remove an undelivered message from the unacknowledged ones; `content` may be anything."""
        try:
            key = key_in(loads(content))
        except SHAPE_ERRORS:
            key = None
        if key is None:
            self._remove_from_indices(delivery_tag).execute()
        else:
            self._keyed[delivery_tag] = Keyed(delivery_tag, key, is_held=False)
        if self.channel.connection.loop is None:
            self.acknowledge_now()

    def _key_of(self, delivery_tag: str) -> str | None:
        message = self._delivered.get(delivery_tag)
        return None if message is None else key_in({"headers": message.headers})

    def acknowledgements(self, asked: Iterable[str] = ()) -> Acknowledgements:
        """Return the acknowledged messages, and the Redis commands for them, which may be repeated.

        `asked`: the queues of the claims that are sent right after them.
        """
        tags = list(islice(self._acknowledged, _AT_ONCE))
        keyed = list(islice(self._keyed.values(), _AT_ONCE))
        index, unacked = (
            self._prefixed(key) for key in (self.channel.unacked_index_key, self.channel.unacked_key)
        )
        # If only the first of the two arrives, the message stays in `unacked` until that key is deleted, and no worker
        # gets it: the index defines which messages go back.
        commands: list[list[Any]] = [["ZREM", index, *tags], ["HDEL", unacked, *tags]] if tags else []
        is_known, prefix = self.channel.script_is_known, self.channel.global_keyprefix
        next_ones = "".join(f"\n{prefix}{queue}\n" for queue in asked) if keyed else ""
        commands += [
            release_command(unacked, index, prefix, each, is_known=is_known, asked=next_ones)
            for each in keyed
        ]
        return Acknowledgements(tags, keyed, commands)

    def are_acknowledged(self, sent: Acknowledgements, *, keyed_too: bool = True) -> None:
        """Remove the messages that `acknowledgements` has returned: Redis has answered.

        They may be removed already: `acknowledge_now` does not wait for the answer to a claim, and sends them again.
        """
        for tag in sent.tags:
            self._acknowledged.pop(tag, None)
        for each in sent.keyed if keyed_too else ():
            self._keyed.pop(each.tag, None)

    def acknowledge_now(self) -> None:
        """Send the acknowledgements that were not sent with a claim, and wait for the answer."""
        while self._acknowledged or self._keyed:
            sent = self.acknowledgements()
            pipe: Any = self._redis().pipeline(transaction=False)
            for command in sent.commands:
                pipe.execute_command(*command)
            try:
                pipe.execute()
            except NoScriptError:  # Redis has restarted: again, with the whole scripts
                self.channel.script_is_known = False
            else:
                self.are_acknowledged(sent)

    def renew(self) -> None:
        """Renew the lease if there are unacknowledged messages."""
        if len(self._delivered) > len(self._dirty):
            self._count_up()

    def empty_inbox(self, queue: str) -> None:
        """Give back a message that arrived after the worker became full, or after it left the queue."""
        lease = self.channel.lease
        self._run(_EMPTY_INBOX, [inbox_key(lease, queue), queue, LEASES], [inbox_lease(lease, queue), ""])

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back the messages in the inboxes too; kombu calls it when the channel closes."""
        self.channel.wake_ups.close()
        try:
            self.acknowledge_now()
        except (redis.RedisError, OSError, AttributeError) as error:
            logger.warning(
                "Redis is down; %d finished tasks will be delivered again (%r)",
                len(self._acknowledged) + len(self._keyed),
                error,
            )
        super().restore_unacked_once(stderr)
        try:
            for queue in self.channel.wake_ups.inboxes:
                self.empty_inbox(queue)
        except (redis.RedisError, OSError, AttributeError) as error:
            logger.debug("Redis is down; messages in inboxes go back when their leases expire (%r)", error)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002  # kombu's signature
        """Give back the unacknowledged messages; if Redis is down, they go back when the lease expires."""
        try:
            counter = self._redis().hget(self._prefixed(LEASES), self.channel.lease)
            if counter is not None:
                self._give_back(Lease(self.channel.lease, int(counter)), ())
        # AttributeError: kombu no longer has a connection.
        except (redis.RedisError, OSError, AttributeError) as error:
            logger.warning("Redis is down; this worker's messages go back when its lease expires (%r)", error)
        self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:  # noqa: ARG002
        """Give back the messages of dead workers; any worker does it for all."""
        now = monotonic()
        if now - self._swept_at < self.channel.unacked_restore_interval:
            return
        self._swept_at = now
        pipe = self._redis().pipeline(transaction=False)
        pipe.hgetall(self._prefixed(LEASES))
        pipe.exists(self._prefixed(LATER))
        found, waits = pipe.execute()
        if waits:
            self.channel.later.move_due()
        counters = {bytes_to_str(name): int(counter) for name, counter in found.items()}
        counters.pop(self.channel.lease, None)
        for lease in self._observer.expired(counters, now):
            try:
                self._restore_expired(lease, counters)
            except CacheAwayError as away:
                logger.warning("a malformed message cannot be kept as a dead letter now: %s", away.message)
            except redis.ResponseError as error:  # the messages of the other leases still go back
                logger.warning("the messages of a dead worker cannot go back now: %s", error)

    def _restore_expired(self, lease: Lease, counters: Iterable[str]) -> None:
        name, _, queue = lease.name.partition(" ")
        if queue:
            keys = [inbox_key(name, queue), queue, LEASES]
            number = int(self._run(_EMPTY_INBOX, keys, [lease.name, lease.counter]))
        else:
            inboxes = [other[len(name) + 1 :] for other in counters if other.startswith(f"{name} ")]
            number = self._give_back(lease, inboxes)
        if number:
            logger.warning("a worker is dead; %d of its tasks are back in their queues", number)

    def _give_back(self, lease: Lease, inboxes: Iterable[str]) -> int:
        """Return the messages of a lease to their queues, oldest first, unless the lease was renewed meanwhile."""
        tags = self._redis().zrevrange(self._prefixed(index_key(lease.name)), 0, -1)
        lists: dict[str, str] = {}  # queue: the key of the list with the messages that go back to it
        own = uuid4().hex
        for queue, messages in self._by_queue(lease, tags):
            place = lists.setdefault(queue, f"cdc:restoring:{own}:{len(lists)}")
            pipe = self._redis().pipeline(transaction=False)
            pipe.rpush(self._prefixed(place), *messages)
            pipe.expire(self._prefixed(place), _KEPT)
            pipe.execute()
        keys = [LEASES, unacked_key(lease.name), index_key(lease.name)]
        keys += [key for queue in inboxes for key in (inbox_key(lease.name, queue), queue)]
        first_list = len(keys) + 1
        keys += [key for queue, place in lists.items() for key in (place, queue)]
        arguments = [lease.name, lease.counter, len(tags), first_list]
        return len(tags) if self._run(_GIVE_BACK, keys, arguments) else 0

    def _by_queue(self, lease: Lease, tags: list[Any]) -> Iterator[tuple[str, list[str]]]:
        """Yield queues with the messages that go back there, the newest first."""
        for start in range(0, len(tags), _AT_ONCE):
            part = tags[start : start + _AT_ONCE]
            found: dict[str, list[str]] = {}
            messages = self._redis().hmget(self._prefixed(unacked_key(lease.name)), part)
            for tag, entry in zip(part, messages, strict=True):
                if entry is None:
                    continue
                for queue, message in self._restored(tag, entry):
                    found.setdefault(queue, []).append(message)
            yield from found.items()

    def _restored(self, tag: bytes | str, entry: bytes | str) -> list[tuple[str, str]]:
        """Return the lists to which a message goes back, with its new text; a malformed one becomes a dead letter."""
        try:
            message, exchange, routing_key = loads(entry)
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            text = dumps(message)
            places = self.channel.places(message, exchange, routing_key)
        except SHAPE_ERRORS as error:
            keep_malformed(_as_it_came(tag, entry), reason=repr(error))
            return []
        if not places:  # kombu would drop it
            keep_malformed(
                _as_it_came(tag, entry),
                reason=f"No queue is bound to {exchange!r} with {routing_key!r} any more.",
            )
        return [(queue, text) for queue in places]

    def _count_up(self) -> None:
        self._redis().hincrby(self._prefixed(LEASES), self.channel.lease, 1)

    def _redis(self) -> redis.Redis:
        # Not the channel's own client: in a script it would put the prefix before the first key only.
        return redis.Redis(connection_pool=self.channel.pool)

    def _prefixed(self, key: str) -> str:
        return f"{self.channel.global_keyprefix}{key}"

    def _run(self, script: str, keys: Iterable[str], arguments: Iterable[Any]) -> Any:
        return self._redis().register_script(script)(
            keys=[self._prefixed(key) for key in keys], args=list(arguments)
        )


def _as_it_came(tag: bytes | str, entry: bytes | str) -> bytes | str:
    """Return a message without the address that the claim appended: `[message,exchange,routing key]`."""
    if bytes_to_str(tag).startswith(MADE_UP_TAG):
        return entry
    text = entry if isinstance(entry, str) else entry.decode(errors="surrogateescape")
    try:
        end = json.JSONDecoder().raw_decode(text, 1)[1]
    except SHAPE_ERRORS:  # it is nested too deeply
        return entry
    return text[1:end].encode(errors="surrogateescape")
