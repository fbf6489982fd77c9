"""Keys that are held up on RabbitMQ: by a task that waits for its retry, or by a failed one; in the Redis of CACHE_URL.

As long as no task of a key is retried or held, its messages are in RabbitMQ alone, in their partition, and nothing is
here. A retry is another message: it leaves the partition, and comes back behind others of its key. So the key gets a
record that names its task, before the retry is sent. The worker that takes from the partition puts what comes meanwhile
for that key aside, here, and goes on with the other keys. When the named task has ended, the first message that was put
aside is named, and is sent to the partition; then the next one, until none is left and the record is deleted.

    cdc:held-keys                 a hash: key, its record
    cdc:held-keys:waiting:KEY     a sorted set: what was put aside, in the order of arrival
    cdc:held-keys:number          the last number of an arrival

A worker may die between sending a retry and acknowledging the try before. Then that try comes back and runs again, and
when it has ended, the retry is noted here and dropped:

    cdc:held-keys:replaced:ID:N   there for an hour: retry N of this task is dropped

So is a second copy of a retry that has ended: a process may die after it has sent one, and its worker sends another.

RabbitMQ does not answer an acknowledgement. If it dies, or the connection breaks, those on their way are lost, and it
delivers the messages again, although their tasks have ended. So each partition has its last ended deliveries here, and
the worker drops a redelivered message that is among them. A worker writes them in the step in which it looks at the
next message's key, so before a later task of the same key begins:

    cdc:held-keys:ended:QUEUE     a list of `delivery_of`, the last one first

A partition has up to a hundred unacknowledged messages, and acknowledgements arrive in order. So the messages whose
acknowledgement was lost are among the last hundred that have ended.

A message that was put aside and is sent again has TURN_HEADER. It runs only if the key's record names it: a second copy
does not run late. A message that was put aside is deleted here only when it has arrived in the partition again. Each
step can be done twice: a worker that dies between two of them leaves nothing that is lost, or that waits forever.
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

TURN_HEADER: Final = "cdc_key_turn"  # there and true: the message was put aside before

State = Literal["retry", "held", "turn"]

_RECORDS: Final = "cdc:held-keys"
_WAITING: Final = "cdc:held-keys:waiting:"
_NUMBER: Final = "cdc:held-keys:number"
_REPLACED: Final = "cdc:held-keys:replaced:"
_ENDED: Final = "cdc:held-keys:ended:"
_KEPT: Final = 3600  # seconds; longer than a retry waits
_ENDED_KEPT: Final = 200  # deliveries of a partition: twice the number of messages that a worker holds of it

# KEYS: the records, what waits; ARGV: the key, then what each says. MARK is what a step looks at: each new record has
# another one.

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
    """The task that has a key now."""

    id: str
    task: str
    since: float  # Unix time
    state: State  # "turn": it waited for the one before, and is in the partition or about to be sent there
    previous: str | None = None  # the id of the task before it
    is_sent: bool = True
    retries: int = 0  # of the retry that was sent, or was about to be
    mark: str  # a step is done only if the key's record still has it

    @classmethod
    def read(cls, raw: bytes) -> Record:
        """Return the record that Redis has."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Aside:
    """A message that was put aside, as JSON."""

    text: str

    @classmethod
    def of(cls, message: Any) -> Aside:
        """Return what to keep of a message as kombu has it."""
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
    """Return the record of a key; None if the key is free. Raise CacheAwayError, as all of these do."""
    with cache.errors_translated():
        found: Any = cache.client().hget(_RECORDS, key)
    return None if found is None else Record.read(found)


def delivery_of(headers: Mapping[str, Any]) -> str | None:
    """Return what names a message among all that were sent: its task, the try, and the replay that it is of.

    None: it is no task's.
    """
    if not isinstance(headers.get("id"), str):
        return None
    replay = headers.get(REPLAYED_HEADER) or headers.get(REPLAY_HEADER) or ""
    return f"{headers['id']}:{headers.get('retries') or 0}:{replay}"


def is_replay(headers: Mapping[str, Any]) -> bool:
    """Return whether a person wants this task to run, although it may have ended before."""
    return REPLAYED_HEADER in headers or REPLAY_HEADER in headers


def look_up(
    key: str, queue: str, ended: Sequence[str], *, redelivered: str | None = None
) -> tuple[Record | None, bool]:
    """Note what has ended in a partition; return the key's record, and whether a redelivered message has ended."""
    if not ended and redelivered is None:
        return get(key), False
    with cache.errors_translated():
        names = (_RECORDS, _ENDED + queue)
        has_ended, found = cache.client().eval(_LOOK_UP, 2, *names, key, redelivered or "", *ended)
    return (None if found is None else Record.read(found)), bool(has_ended)


def note_ended(queue: str, ended: Sequence[str]) -> None:
    """Note what has ended in a partition."""
    if ended:
        look_up("", queue, ended)


def hold(key: str, task_id: str, task: str, state: State, *, retries: int = 0) -> None:
    """Let the key belong to this task until it has ended."""
    record = {"id": task_id, "task": task, "since": time(), "state": state, "retries": retries}
    if retries:  # a replayed task begins to count again
        with cache.errors_translated():
            cache.client().delete(f"{_REPLACED}{task_id}:{retries}")
    _run(_HOLD, key, json.dumps({**record, "mark": uuid4().hex}))


def replace_retry(task_id: str, retries: int) -> None:
    """Note that this retry is not to run any more: it has ended, or the try before it has run again."""
    with cache.errors_translated():
        cache.client().set(f"{_REPLACED}{task_id}:{retries}", 1, ex=_KEPT)


def is_replaced(task_id: str, retries: int) -> bool:
    """Return whether this retry is not to run."""
    with cache.errors_translated():
        return bool(cache.client().exists(f"{_REPLACED}{task_id}:{retries}"))


def put_aside(key: str, message: Any) -> bool:
    """Keep a message until the task that has the key has ended; return False if the key is free, or its own."""
    return bool(_run(_PUT_ASIDE, key, str(message.headers["id"]), Aside.of(message).text, more=(_NUMBER,)))


def begin(key: str, record: Record) -> bool:
    """Note that the task of the record has arrived; return False if the key has another record now."""
    return bool(_run(_BEGIN, key, record.mark))


def release(key: str, record: Record) -> tuple[Record, Aside] | None:
    """Note that the task of the record has ended; return what is to be sent now.

    It does nothing if the key has another record now: the task is retried, or holds its key.
    """
    found = _run(_RELEASE, key, record.mark, uuid4().hex, repr(time()))
    return None if not found else (Record.read(found[0]), Aside(found[1].decode()))


def sent(key: str, record: Record) -> None:
    """Note that RabbitMQ has the message of the record."""
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
    """Return how many messages were put aside for a key, and the first of them."""
    with cache.errors_translated():
        number = int(cache.client().zcard(_WAITING + key))
        found: Any = cache.client().zrange(_WAITING + key, 0, most - 1)
    return number, [Aside(each.decode()) for each in found]


def _run(script: str, key: str, *arguments: str | bytes, more: tuple[str, ...] = ()) -> Any:
    with cache.errors_translated():
        client = cache.client()
        keys = (_RECORDS, _WAITING + key, *more)
        return client.eval(script, len(keys), *keys, key, *arguments)
