"""kombu's Redis transport, made safe: a dead worker loses no message, and its messages are soon delivered again.

kombu takes a message off its queue (BRPOP) and writes it to `unacked` a moment later. The message is lost if the worker
is killed or the connection breaks in between. Here one script does both, so a message is always in a queue or in
`unacked`. A script cannot wait for a message: `cdc_tasks/broker/redis/wake_up.py` does that for an idle worker.

A worker also renews a lease every few seconds while it has unacknowledged messages. If the lease is not renewed within
the visibility timeout, the messages go back to their queue. That timeout must be longer than a pause of a worker's main
process. With kombu alone it must be longer than any task and any delay (`cdc_tasks/broker/redis/unacknowledged.py`).

Messages that are due later wait in Redis (`cdc_tasks/broker/redis/later.py`). With Celery alone, one worker keeps them.

The formats of queues and messages are kombu's. Unacknowledged messages are under our own keys, so our workers and
workers with kombu's transport on the same database never touch each other's messages.
"""

from __future__ import annotations

import hashlib
from queue import Empty
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import uuid4

import redis
from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import NoScriptError, ResponseError

from cdc_tasks.broker.redis.connections import SharedConnections
from cdc_tasks.broker.redis.later import Later
from cdc_tasks.broker.redis.message_groups import GROUPS, MessageGroups, key_in, next_list
from cdc_tasks.broker.redis.older_kombu import ChannelParts, is_older, register_older_timers
from cdc_tasks.broker.redis.sent_together import collect
from cdc_tasks.broker.redis.silent_connections import Liveness
from cdc_tasks.broker.redis.unacknowledged import (
    LEASES,
    MADE_UP_TAG,
    Acknowledgements,
    QoS,
    inbox_key,
    index_key,
    unacked_key,
)
from cdc_tasks.broker.redis.wake_up import NO_WAKE_UP, Poller, WakeUps
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters.malformed_messages import (
    SHAPE_ERRORS,
    MalformedMessageError,
    check_envelope,
    keep_malformed,
)

__all__ = ["SentinelTransport", "Transport"]

logger = get_logger(__name__)

_MOST_LOOKED_AT: Final = 200  # messages whose key is not free, in one claim

# KEYS: leases, unacked, its index, the lists in the order in which to look
# ARGV: the lease, the prefix, and for each list 1 if its messages are acknowledged, else 0, and then its queue
# A message without kombu's envelope is stored too, under a tag that the script makes up. A message whose key has
# another owner waits (`message_groups.py`). The answer: the number of a list, a message and its tag; -1: ask again.
_CLAIM = f"""
local P = ARGV[2]
{GROUPS}
local function address(message)
    local envelope = decoded(message)
    local properties = envelope['properties']
    local where = properties['delivery_info']
    local exchange, routing_key = cjson.encode(where['exchange']), cjson.encode(where['routing_key'])
    return '' .. properties['delivery_tag'], exchange .. ',' .. routing_key, described(envelope)
end
if redis.call('EXISTS', unpack(KEYS, 4)) == 0 then return false end
local looked_at = 0
for i = 4, #KEYS do
    local is_acknowledged, list = string.sub(ARGV[i - 1], 1, 1) == '1', string.sub(ARGV[i - 1], 2)
    local message = redis.call('RPOP', KEYS[i])
    while message do
        local is_kombus, tag, where, keyed = pcall(address, message)
        if not (is_kombus and keyed and is_acknowledged) or may_go(keyed, list, message) then
            if is_acknowledged then
                local count = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
                if not is_kombus then tag = '{MADE_UP_TAG}' .. count end
                redis.call('HSET', KEYS[2], tag, is_kombus and '[' .. message .. ',' .. where .. ']' or message)
                redis.call('ZADD', KEYS[3], count, tag)
            end
            return {{i - 4, message, tag}}
        end
        looked_at = looked_at + 1
        if looked_at == {_MOST_LOOKED_AT} then return {{-1}} end
        message = redis.call('RPOP', KEYS[i])
    end
end
return looked_at > 0 and {{-1}}
"""

_MAX_CLAIMS: Final = 16  # in a round: a worker with more free processes continues in the next one


class _Place(NamedTuple):
    """A list in which a claim looks for messages."""

    key: str  # without the prefix
    queue: str
    is_slow: bool = False  # kombu's list for messages with a priority, at which no worker waits


class _Claim(NamedTuple):
    """One claim, ready to be sent."""

    asked: list[_Place]  # the lists at which the script looks, in its order
    packed: Any  # what redis-py sends


class _Sent(NamedTuple):
    """Commands that were sent in one packet, so that the answers come together."""

    acknowledgements: Acknowledgements
    claims: list[_Claim]  # empty: EXISTS was sent


_CLAIM_SHA: Final = hashlib.sha1(_CLAIM.encode()).hexdigest()  # noqa: S324  # what Redis calls a script


class _ClaimingChannel:
    """A mixin, before kombu's channel among a class's bases: takes messages from queues."""

    QoS: Any = QoS
    max_connections = 200  # an upper limit: there is one for each queue
    claimed: str | None = None  # the delivery tag of the message that is being delivered
    claimed_from = ""  # its queue
    _is_empty = False  # the last claim found all queues empty
    script_is_known = True
    _number_of_claims = 0
    _sent = _Sent(Acknowledgements([], [], []), [])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prepared: dict[Any, _Claim] = {}
        self._no_ack_queues: set[str] = set()  # queues whose consumers do not acknowledge
        self.wake_ups = WakeUps(self)
        self.later = Later(self)
        self.lease = uuid4().hex
        super().__init__(*args, **kwargs)
        self.unacked_key = unacked_key(self.lease)
        self.unacked_index_key = index_key(self.lease)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001
        if no_ack:
            self._no_ack_queues.add(queue)
        else:
            self._no_ack_queues.discard(queue)
        self._prepared.clear()
        if (kwargs.get("arguments") or {}).get(NO_WAKE_UP):
            self.wake_ups.omit(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]

    def _basic_cancel(self: Any, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        result = super()._basic_cancel(consumer_tag)  # type: ignore[misc]
        if queue is not None and queue not in self.active_queues:
            self.wake_ups.leave(queue)
        return result

    def _brpop_start(self: Any, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send a claim for each free process; if the last one found nothing, wait for a wake-up instead.

        Every few seconds, look anyway. Acknowledgements are sent with it.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        if self._is_empty and not self.wake_ups.is_time_to_look():
            self.wake_ups.wait_at(queues)
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        acknowledgements = self.qos.acknowledgements(() if self._is_empty else queues)
        claims = [] if self._is_empty else self._claims(queues)
        commands = [*acknowledgements.commands]
        if self._is_empty:
            commands.append(["EXISTS", *self._keys_of(self._places(queues))])
        packets = connection.pack_commands(commands) if commands else []
        connection.send_packed_command([*packets, *(part for claim in claims for part in claim.packed)])
        self._sent = _Sent(acknowledgements, claims)

    def acknowledge_rest(self: Any) -> None:
        """Send the acknowledgements, unless a claim is pending whose successor will take them along."""
        if not (self._in_poll and self.qos.can_consume()):
            self.qos.acknowledge_now()

    def look_again(self) -> None:
        """Send a claim in the next round: there may be a message now."""
        self._is_empty = False

    def _places(self: Any, queues: list[str], *, due_first: bool = True) -> list[_Place]:
        """Return all lists that may have a message, in the order in which to look.

        `due_first`: first the lists with messages that are next, then the queues themselves.
        """
        inboxes = [_Place(inbox_key(self.lease, queue), queue) for queue in queues]
        due = [_Place(next_list(f"{self.global_keyprefix}{queue}"), queue) for queue in queues]
        highest, *others = [
            [_Place(self._q_for_pri(queue, step), queue, is_slow=bool(step)) for queue in queues]
            for step in self.priority_steps
        ]
        first = [*due, *highest] if due_first else [*highest, *due]
        return [*inboxes, *first, *(place for each in others for place in each)]

    def _keys_of(self: Any, places: list[_Place]) -> list[str]:
        return [f"{self.global_keyprefix}{place.key}" for place in places]

    def _claims(self: Any, queues: list[str]) -> list[_Claim]:
        """Return one claim for each message that the worker may take, each beginning with another queue."""
        free = self.qos.can_consume_max_estimate() or 1
        turns = (number % len(queues) for number in range(min(free, _MAX_CLAIMS)))
        return [self._claim([*queues[turn:], *queues[:turn]]) for turn in turns]

    def _claim(self: Any, queues: list[str]) -> _Claim:
        """Return a claim. Messages that are next come first in every second claim, so that neither kind starves."""
        self._number_of_claims += 1
        due_first = self._number_of_claims % 2 == 1
        key = (*queues, self.script_is_known, due_first)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(self._places(queues, due_first=due_first))
        claim: _Claim = self._prepared[key]
        return claim

    def _prepare(self: Any, places: list[_Place]) -> _Claim:
        prefix = self.global_keyprefix
        keys = [f"{prefix}{key}" for key in (LEASES, self.unacked_key, self.unacked_index_key)]
        keys += self._keys_of(places)
        lists = [f"{int(place.queue not in self._no_ack_queues)}{prefix}{place.queue}" for place in places]
        script = ("EVALSHA", _CLAIM_SHA) if self.script_is_known else ("EVAL", _CLAIM)
        command = [*script, len(keys), *keys, self.lease, prefix, *lists]
        return _Claim(places, self.client.connection.pack_commands([command]))

    def _brpop_read(self: Any, **_: Any) -> bool:
        """Read the answers to what `_brpop_start` has sent; raise Empty if there is no message."""
        try:
            came = [self._take(asked, *answer) for asked, answer in self._read_claimed()]
            if not any(came):
                raise Empty
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _read_claimed(self: Any) -> list[tuple[list[_Place], Any]]:
        """Return the answers with a message, each with the lists that were queried."""
        sent: _Sent = self._sent
        number = len(sent.acknowledgements.commands)
        answers = self._read_answers(number + max(len(sent.claims), 1))
        self.script_is_known = not _has_unknown_script(answers)  # Redis has restarted
        self.qos.are_acknowledged(sent.acknowledgements, keyed_too=not _has_unknown_script(answers[:number]))
        if not sent.claims:  # EXISTS: how many of the lists exist
            self._is_empty = not answers[-1]
            return []
        self._is_empty = answers[-1] is None
        claims = zip(sent.claims, answers[number:], strict=True)
        return [
            (claim.asked, answer) for claim, answer in claims if isinstance(answer, list) and answer != [-1]
        ]

    def _read_answers(self: Any, number: int) -> list[Any]:
        """Read all answers before any of them has an effect; raise the first error among them."""
        connection = self.client.connection
        try:
            answers = [_read(connection) for _ in range(number)]
        except self.connection_errors:
            connection.disconnect()
            raise
        for answer in answers:
            if isinstance(answer, ResponseError) and not isinstance(answer, NoScriptError):
                raise answer
        return answers

    def _take(self: Any, asked: list[_Place], number: int, content: bytes, tag: bytes) -> bool:
        """Deliver a message that was claimed; return whether it is one."""
        _, queue, is_slow = asked[number]
        if is_slow:
            self.wake_ups.expect_priorities()
        try:
            message = self._readable(content)
        except (MalformedMessageError, *SHAPE_ERRORS) as error:
            self._keep_malformed(content, queue, bytes_to_str(tag), reason=str(error))
            return False
        self._deliver_claimed(queue, message)
        return True

    def _readable(self: Any, content: bytes) -> dict[str, Any]:
        message: dict[str, Any] = loads(content)
        check_envelope(message)
        self.decode_body(message["body"], message["properties"].get("body_encoding"))
        return message

    def _keep_malformed(self: Any, content: bytes, queue: str, tag: str, *, reason: str) -> None:
        """Keep a malformed message as a dead letter; if that fails, it is restored when its lease expires."""
        try:
            keep_malformed(content, reason=reason, queue=queue)
        except CacheAwayError as away:
            logger.warning("a malformed message cannot be kept as a dead letter now: %s", away.message)
            return
        if queue not in self._no_ack_queues:
            self.qos.forget(tag, content)

    def _deliver_claimed(self: Any, queue: str, message: dict[str, Any]) -> None:
        self._queue_cycle.rotate(queue)
        self.claimed = None if queue in self._no_ack_queues else message["properties"]["delivery_tag"]
        self.claimed_from = queue
        try:
            self.connection._deliver(message, queue)  # noqa: SLF001  # as kombu's own does
        finally:
            self.claimed = None

    def places(self: Any, message: dict[str, Any], exchange: str, routing_key: str) -> list[str]:
        """Return the Redis lists to which such a message goes."""
        priority = self._get_message_priority(message, reverse=False)
        return [self._q_for_pri(queue, priority) for queue in self._lookup(exchange, routing_key)]

    def _put(self: Any, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Put a message into its queue; a message with a key waits if the key is not free."""
        if key_in(message) is None or kwargs.get("_publish_batch") is not None:
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            return
        place = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        text = dumps(message)
        if not collect(self, place, text):
            self.groups.put((place, text))
        if queue in getattr(self, "_expires", ()):  # newer than kombu 5.4
            with self.conn_or_acquire() as client:
                for step in self.priority_steps:
                    client.pexpire(self._q_for_pri(queue, step), self._expires[queue])

    @property
    def groups(self: Any) -> MessageGroups:
        """The message groups of this broker."""
        return MessageGroups(redis.Redis(connection_pool=self.pool), self.global_keyprefix)

    def _purge(self: Any, queue: str) -> int:
        """Delete the messages in the queue, and those that wait for it; this frees the keys of these messages."""
        waiting = int(self.later.drop(queue))
        purged: int = self.groups.purge(self._q_for_pri(queue, step) for step in self.priority_steps)
        return purged + waiting

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        if queue not in self._fanout_queues:
            self._purge(queue)
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]

    def _on_connection_disconnect(self, connection: Any) -> None:
        self.wake_ups.forget(connection)
        super()._on_connection_disconnect(connection)  # type: ignore[misc]

    def _close_clients(self) -> None:
        self.wake_ups.close()
        self.later.close()
        super()._close_clients()  # type: ignore[misc]

    def maybe_renew(self: Any) -> None:
        """Renew the lease; the next command on a broken connection makes kombu reconnect."""
        try:
            self.qos.renew()
        except self.connection_errors:
            logger.debug("the lease was not renewed; the worker retries", exc_info=True)


def _read(connection: Any) -> Any:
    """Return the next answer, even an error; raise connection errors."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _has_unknown_script(answers: list[Any]) -> bool:
    return any(isinstance(answer, NoScriptError) for answer in answers)


def _do_nothing() -> None:
    """Start a round of the event loop, in which an idle worker may look at its queues."""


_RESTORE_INTERVAL: Final = "unacked_restore_interval"  # an option that older versions of kombu do not take


class Channel(_ClaimingChannel, SharedConnections, Liveness, kombu_redis.Channel, ChannelParts):
    """A channel to one Redis."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, _RESTORE_INTERVAL)


class SentinelChannel(
    _ClaimingChannel, SharedConnections, Liveness, kombu_redis.SentinelChannel, ChannelParts
):
    """A channel to the Redis that Sentinel names."""

    # kombu's channel for Sentinel takes more options than its other one, such as `master_name`.
    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, _RESTORE_INTERVAL)


class _RenewingTransport:
    """A mixin, before kombu's transport among a class's bases: a worker's work every few seconds."""

    _timers: tuple[Any, ...] = ()
    loop: Any = None  # the worker's event loop
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self: Any, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        self.loop = loop
        for timer in self._timers:
            timer.cancel()
        lease = connection.client.transport_options.get("visibility_timeout", Channel.visibility_timeout)
        self._timers = (
            loop.call_repeatedly(min(lease / 6, 60), self._renew),
            loop.call_repeatedly(1, _do_nothing),
            *(register_older_timers(self, connection, loop) if is_older() else ()),
        )

    def _renew(self: Any) -> None:
        for channel in list(self.channels):
            channel.maybe_renew()


class Transport(_RenewingTransport, kombu_redis.Transport):
    """Replaces kombu's transport for `redis://` and `rediss://`."""

    Channel = Channel


class SentinelTransport(_RenewingTransport, kombu_redis.SentinelTransport):
    """Replaces kombu's transport for `sentinel://`."""

    Channel = SentinelChannel
