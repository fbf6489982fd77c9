"""Keys that are held up on RabbitMQ: by a task that waits for its retry, or by a failed one; in the Redis of CACHE_URL.

While no task of a key is retried or held, its messages are only in RabbitMQ, in their partition. A retry is another
message: it leaves the partition, and comes back after others of its key. So before the retry is sent, the key gets a
record that names its task. The worker that consumes from the partition sets later messages of the key aside, here, and
continues with the other keys. When the named task has ended, the record names the first message that was set aside, and
the message is sent to the partition. Then the next one follows, until none is left and the record is deleted.

    cdc:held-keys                 a hash: key, its record
    cdc:held-keys:waiting:KEY     a sorted set: messages that were set aside, in the order of arrival
    cdc:held-keys:number          the last number of an arrival

A worker may die between sending a retry and acknowledging the attempt before it. Then that attempt is redelivered and
runs again. When it has ended, the retry is recorded here and dropped:

    cdc:held-keys:replaced:ID:N   exists for an hour: retry N of this task is dropped

A second copy of a retry that has ended is dropped too: a process may die after it has sent one, and its worker sends
another.

RabbitMQ does not answer an acknowledgement. If it dies, or the connection breaks, acknowledgements in transit are lost,
and it redelivers the messages although their tasks have ended. So the last ended deliveries of each partition are
stored here, and the worker drops a redelivered message that is among them. A worker writes them in the step in which it
looks up the next message's key, so before a later task of the same key begins:

    cdc:held-keys:ended:QUEUE     a list of `delivery_of`, the last one first

A partition has up to a hundred unacknowledged messages, and acknowledgements arrive in order. So the messages whose
acknowledgement was lost are among the last hundred that have ended.

A message that was set aside and is sent again has TURN_HEADER. It runs only if the key's record names it, so a second
copy does not run later. A message that was set aside is deleted here only after it has arrived in the partition again.
Each step is idempotent: if a worker dies between two steps, no message is lost or waits forever.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

from cdc_tasks import cache
from cdc_tasks.broker.delivery_marks import REPLAY_HEADER, REPLAYED_HEADER, without_marks, without_wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "TURN_HEADER",
    "Aside",
    "Record",
    "begin",
    "count",
    "delivery_of",
    "every",
    "get",
    "hold",
    "is_replaced",
    "is_replay",
    "look_up",
    "note_ended",
    "put_aside",
    "release",
    "replace_retry",
    "sent",
    "waiting",
]

TURN_HEADER: Final = "cdc_key_turn"  # true: the message was set aside before

State = Literal["retry", "held", "turn"]

_RECORDS: Final = "cdc:held-keys"
_WAITING: Final = "cdc:held-keys:waiting:"
_NUMBER: Final = "cdc:held-keys:number"
_REPLACED: Final = "cdc:held-keys:replaced:"
_ENDED: Final = "cdc:held-keys:ended:"
_KEPT: Final = 3600  # seconds; longer than a retry waits
_ENDED_KEPT: Final = (
    200  # deliveries of a partition: twice the number of a worker's unacknowledged messages of it
)

# KEYS: the records, the waiting messages; ARGV: the key, then as described for each script. A step compares the mark:
# each new record has another one.

_HOLD: Final = """
local new, old = cjson.decode(ARGV[2]), redis.call('HGET', KEYS[1], ARGV[1])
if old then
    old = cjson.decode(old)
    if old.id == new.id then new.previous = old.previous end
end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(new))
"""

# ARGV: the key, the task id of the message, the message; KEYS: also the last number
_PUT_ASIDE: Final = """
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record or cjson.decode(record).id == ARGV[2] then return 0 end
redis.call('ZADD', KEYS[2], 'NX', redis.call('INCR', KEYS[3]), ARGV[3])
return 1
"""

_RECORD: Final = """
local record = redis.call('HGET', KEYS[1], ARGV[1])
record = record and cjson.decode(record)
if not record or record.mark ~= ARGV[2] then return false end
"""

# ARGV: the key, the mark
_BEGIN: Final = f"""
{_RECORD}
local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
if first and cjson.decode(first).id == record.id then redis.call('ZREM', KEYS[2], first) end
return 1
"""

# ARGV: the key, the mark, the mark of the next record, now
_RELEASE: Final = f"""
{_RECORD}
local id = record.id
local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
while first and cjson.decode(first).id == id do  -- a copy of the task that has ended
    redis.call('ZREM', KEYS[2], first)
    first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
end
if not first then
    redis.call('HDEL', KEYS[1], ARGV[1])
    return false
end
local message = cjson.decode(first)
local following = cjson.encode({{
    id = message.id, task = message.task, since = tonumber(ARGV[4]), state = 'turn', mark = ARGV[3], previous = id,
    is_sent = false
}})
redis.call('HSET', KEYS[1], ARGV[1], following)
return {{following, first}}
"""

# ARGV: the key, the mark
_SENT: Final = f"""
{_RECORD}
record.is_sent = true
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(record))
return 1
"""


_NOTE_ENDED: Final = f"""
for place = 3, #ARGV do redis.call('LPUSH', KEYS[2], ARGV[place]) end
if #ARGV > 2 then redis.call('LTRIM', KEYS[2], 0, {_ENDED_KEPT - 1}) end
"""

# KEYS: the records, what has ended; ARGV: the key, a redelivered message or nothing, what has ended now
_LOOK_UP: Final = f"""
{_NOTE_ENDED}
local has_ended = 0
if ARGV[2] ~= '' then
    for _, each in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
        if each == ARGV[2] then has_ended = 1 end
    end
end
return {{has_ended, redis.call('HGET', KEYS[1], ARGV[1])}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The task that owns a key now."""

    id: str
    task: str
    since: float  # Unix time
    state: State  # "turn": it waited for the previous one, and is in the partition or about to be sent there
    previous: str | None = None  # the id of the task before it
    is_sent: bool = True
    retries: int = 0  # number of the retry that was sent or was about to be
    mark: str  # a step is executed only if the key's record still has it

    @classmethod
    def read(cls, raw: bytes) -> Record:
        """Parse the record from Redis."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Aside:
    """A message that was set aside, as JSON."""

    text: str

    @classmethod
    def of(cls, message: Any) -> Aside:
        """Return the part of kombu's message that is kept."""
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        headers = without_marks(message.headers)
        headers.pop("compression", None)  # kombu has unpacked the body
        kept = {
            "id": headers.get("id"),
            "task": headers.get("task"),
            "queue": without_wait(message.delivery_info["routing_key"]),
            "headers": headers,
            "properties": {name: value for name, value in message.properties.items() if name in _PROPERTIES},
            "content": [message.content_type, message.content_encoding],
            "body": b64encode(body).decode(),
        }
        return cls(json.dumps(kept, sort_keys=True, default=str))

    def publish(self, producer: Any) -> None:
        """Send it to its partition again; raise kombu's errors."""
        kept = json.loads(self.text)
        content_type, encoding = kept["content"]
        producer.publish(
            b64decode(kept["body"]),
            exchange="",  # the default exchange: the routing key is the queue
            routing_key=kept["queue"],
            headers={**kept["headers"], TURN_HEADER: True},
            content_type=content_type,
            content_encoding=encoding,
            delivery_mode=2,
            mandatory=True,
            **kept["properties"],
        )


_PROPERTIES: Final = frozenset({"correlation_id", "reply_to", "priority"})


def get(key: str) -> Record | None:
    """Return the record of a key; None if the key is free. All these functions raise CacheAwayError."""
    with cache.errors_translated():
        found: Any = cache.client().hget(_RECORDS, key)
    return None if found is None else Record.read(found)


def delivery_of(headers: Mapping[str, Any]) -> str | None:
    """Return a name that is unique among all sent messages: the task, the attempt, and the replay.

    None: it is not a task's message.
    """
    if not isinstance(headers.get("id"), str):
        return None
    replay = headers.get(REPLAYED_HEADER) or headers.get(REPLAY_HEADER) or ""
    return f"{headers['id']}:{headers.get('retries') or 0}:{replay}"


def is_replay(headers: Mapping[str, Any]) -> bool:
    """Return whether a person has replayed this task, so that it runs even if it has ended before."""
    return REPLAYED_HEADER in headers or REPLAY_HEADER in headers


def look_up(
    key: str, queue: str, ended: Sequence[str], *, redelivered: str | None = None
) -> tuple[Record | None, bool]:
    """Record ended deliveries of a partition; return the key's record, and whether a redelivered message has ended."""
    if not ended and redelivered is None:
        return get(key), False
    with cache.errors_translated():
        names = (_RECORDS, _ENDED + queue)
        has_ended, found = cache.client().eval(_LOOK_UP, 2, *names, key, redelivered or "", *ended)
    return (None if found is None else Record.read(found)), bool(has_ended)


def note_ended(queue: str, ended: Sequence[str]) -> None:
    """Record ended deliveries of a partition."""
    if ended:
        look_up("", queue, ended)


def hold(key: str, task_id: str, task: str, state: State, *, retries: int = 0) -> None:
    """Make this task own the key until it has ended."""
    record = {"id": task_id, "task": task, "since": time(), "state": state, "retries": retries}
    if retries:  # a replayed task starts counting again
        with cache.errors_translated():
            cache.client().delete(f"{_REPLACED}{task_id}:{retries}")
    _run(_HOLD, key, json.dumps({**record, "mark": uuid4().hex}))


def replace_retry(task_id: str, retries: int) -> None:
    """Record that this retry must not run any more: it has ended, or the attempt before it has run again."""
    with cache.errors_translated():
        cache.client().set(f"{_REPLACED}{task_id}:{retries}", 1, ex=_KEPT)


def is_replaced(task_id: str, retries: int) -> bool:
    """Return whether this retry must not run."""
    with cache.errors_translated():
        return bool(cache.client().exists(f"{_REPLACED}{task_id}:{retries}"))


def put_aside(key: str, message: Any) -> bool:
    """Keep a message until the owner of the key has ended; return False if the key is free, or owned by it."""
    return bool(_run(_PUT_ASIDE, key, str(message.headers["id"]), Aside.of(message).text, more=(_NUMBER,)))


def begin(key: str, record: Record) -> bool:
    """Record that the task of the record has arrived; return False if the key has another record now."""
    return bool(_run(_BEGIN, key, record.mark))


def release(key: str, record: Record) -> tuple[Record, Aside] | None:
    """Record that the task of the record has ended; return the message to send now.

    It does nothing if the key has another record now: the task is retried, or holds its key.
    """
    found = _run(_RELEASE, key, record.mark, uuid4().hex, repr(time()))
    return None if not found else (Record.read(found[0]), Aside(found[1].decode()))


def sent(key: str, record: Record) -> None:
    """Record that RabbitMQ has the message of the record."""
    _run(_SENT, key, record.mark)


def count() -> int:
    """Return how many keys have a record."""
    with cache.errors_translated():
        return int(cache.client().hlen(_RECORDS))


def every() -> Iterator[tuple[str, Record]]:
    """Yield all keys with a record."""
    with cache.errors_translated():
        for key, found in cache.client().hscan_iter(_RECORDS, count=500):
            yield key.decode(), Record.read(found)


def waiting(key: str, *, most: int = 1) -> tuple[int, list[Aside]]:
    """Return how many messages were set aside for a key, and the first of them."""
    with cache.errors_translated():
        number = int(cache.client().zcard(_WAITING + key))
        found: Any = cache.client().zrange(_WAITING + key, 0, most - 1)
    return number, [Aside(each.decode()) for each in found]


def _run(script: str, key: str, *arguments: str | bytes, more: tuple[str, ...] = ()) -> Any:
    with cache.errors_translated():
        client = cache.client()
        keys = (_RECORDS, _WAITING + key, *more)
        return client.eval(script, len(keys), *keys, key, *arguments)
