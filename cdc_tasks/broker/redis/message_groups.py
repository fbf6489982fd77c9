"""Message groups on a Redis broker: for each key one message is handed out, and the others wait in Redis.

A message with a key (`cdc_tasks/routing/message_groups.py`) goes into its queue only if no other message has its key.
It then owns the key: in its queue, in a worker, while it waits for its retry or its countdown, and when it is restored
after its worker has died. Later messages of the same key, for any queue, wait in the order of sending. The script that
acknowledges the owner puts the next message into its queue, so no worker has to wait or poll. A task that gives up and
has HOLD_HEADER stays the owner of its key until a person decides.

    cdc:keys                a hash: key, its owner as JSON: [delivery tag, task id, task, since, "held" or nothing]
    cdc:keys:waiting:KEY    a list of waiting messages, next one first: each is its list, a line feed and the message
    cdc:keys:ranked:KEY     a sorted set of messages that wait after these, by RANK_HEADER and then by a number
    cdc:keys:held-up        a set: the keys for which messages wait, and those that a failed task holds
    cdc:keys:lengths        a hash: list, how many messages wait for it
    cdc:keys:next:LIST      a list: messages that are next, and that would otherwise wait for the whole queue again
    cdc:keys:replaced       a hash: the delivery tags of messages that a retry has replaced, until they are acknowledged
    cdc:keys:number         the last number of a message with a rank

A retry is another message with the same task id: it takes over the key from the message that it replaces. If that
message is restored, because its worker died after it had sent the retry, it is dropped. A second copy of the retry,
which kombu sends if the answer to the first was lost, is dropped too: REPLACED_HEADER names the message that both
replace.

A sender with kombu's own transport puts messages with a key directly into the queue. The script that hands messages out
checks each, and makes it wait if its key has another owner.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoScriptError

from cdc_tasks.routing.message_groups import KEY_HEADER, RANK_HEADER, REPLACED_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import redis

__all__ = [
    "ADMIT",
    "ADMIT_DIGEST",
    "GROUPS",
    "LENGTHS",
    "MOVE",
    "HeldUp",
    "Keyed",
    "MessageGroups",
    "Waiting",
    "held_up_key",
    "key_in",
    "next_list",
    "owners_key",
    "release_command",
    "waiting_list",
]

_OWNERS: Final = "cdc:keys"
_HELD_UP: Final = "cdc:keys:held-up"
_WAITING: Final = "cdc:keys:waiting:"
_RANKED: Final = "cdc:keys:ranked:"
_SEPARATOR: Final = r"\6\22"  # Lua for kombu's, between a queue's name and a priority
_AT_ONCE: Final = 500  # messages in one script
LENGTHS: Final = "cdc:keys:lengths"

# Functions for scripts, after a line that sets P, the prefix of all keys.
_NAMES: Final = f"""
local OWNERS, HELD_UP, LENGTHS = P .. '{_OWNERS}', P .. '{_HELD_UP}', P .. '{LENGTHS}'
local WAITING, RANKED, NUMBER = P .. '{_WAITING}', P .. '{_RANKED}', P .. 'cdc:keys:number'
local NEXT, REPLACED = P .. 'cdc:keys:next:', P .. 'cdc:keys:replaced'
"""
_ADMITTING: Final = f"""{_NAMES}
local function decoded(message)  -- without its body, if that is first and without escapes, as kombu's base64 is
    local quote = string.sub(message, 1, 10) == '{{"body": "' and string.find(message, '"', 11, true)
    if not quote or string.byte(message, quote - 1) == 92 or string.sub(message, quote + 1, quote + 2) ~= ', ' then
        return cjson.decode(message)
    end
    return cjson.decode('{{' .. string.sub(message, quote + 3))
end
local function described(message)
    local headers = message['headers']
    if type(headers) ~= 'table' then return nil end
    local key, rank = headers['{KEY_HEADER}'], headers['{RANK_HEADER}']
    if type(key) ~= 'string' then return nil end
    return {{
        key = key, rank = type(rank) == 'string' and string.gsub(rank, '\\n', ' ') or '',
        tag = tostring(message['properties']['delivery_tag']), id = tostring(headers['id']),
        task = tostring(headers['task']), replaces = headers['{REPLACED_HEADER}']
    }}
end
local function own(each)
    local owner = cjson.encode({{each.tag, each.id, each.task, tonumber(redis.call('TIME')[1])}})
    redis.call('HSET', OWNERS, each.key, (string.gsub(owner, '\\\\/', '/')))
end
local function wait(each, list, message)
    if each.rank == '' then
        redis.call('RPUSH', WAITING .. each.key, list .. '\\n' .. message)
    else
        local number = redis.call('INCR', NUMBER)
        local entry = string.format('%s %020.0f\\n%s\\n', each.rank, number, list)
        redis.call('ZADD', RANKED .. each.key, 0, entry .. message)
    end
    redis.call('SADD', HELD_UP, each.key)
    redis.call('HINCRBY', LENGTHS, list, 1)
end
local function anything_waits(key)
    return redis.call('EXISTS', WAITING .. key, RANKED .. key) > 0
end
local function owner_of(key)
    local owner = redis.call('HGET', OWNERS, key)
    return owner and cjson.decode(owner)
end
local function admit(each, list, message)  -- whether it owns the key now; if not, it waits, or is a second copy
    if type(each.replaces) == 'string' and redis.call('HEXISTS', REPLACED, each.replaces) == 1 then return false end
    local owner = owner_of(each.key)
    if owner and owner[2] ~= each.id then
        wait(each, list, message)
        return false
    end
    own(each)
    if owner and not owner[5] then redis.call('HSET', REPLACED, owner[1], 1) end
    if owner and owner[5] and not anything_waits(each.key) then redis.call('SREM', HELD_UP, each.key) end
    return true
end
"""
GROUPS: Final = f"""{_ADMITTING}
local function split(entry)  -- its list, and the message
    local feed = string.find(entry, '\\n', 1, true)
    return string.sub(entry, 1, feed - 1), string.sub(entry, feed + 1)
end
local function without_rank(entry)
    return string.sub(entry, string.find(entry, '\\n', 1, true) + 1)
end
local function next_waiting(key)
    local entry = redis.call('LPOP', WAITING .. key)
    if entry then return entry end
    entry = redis.call('ZRANGE', RANKED .. key, 0, 0)[1]
    if not entry then return nil end
    redis.call('ZREM', RANKED .. key, entry)
    return without_rank(entry)
end
local function wait_no_more(key, list, number)
    if redis.call('HINCRBY', LENGTHS, list, -number) <= 0 then redis.call('HDEL', LENGTHS, list) end
    if not anything_waits(key) then redis.call('SREM', HELD_UP, key) end
end
local function advance(key, asked)  -- the next message owns the key; `asked`: lists at which a claim looks next
    local entry = next_waiting(key)
    if not entry then
        redis.call('HDEL', OWNERS, key)
        redis.call('SREM', HELD_UP, key)
        return
    end
    local list, message = split(entry)
    wait_no_more(key, list, 1)
    own(described(decoded(message)))
    -- Not into the list of a priority: no worker waits there, and this message has waited already.
    local queue = string.match(list, '^(.-){_SEPARATOR}') or list
    if redis.call('EXISTS', queue) == 1 or (asked and string.find(asked, '\\n' .. queue .. '\\n', 1, true)) then
        redis.call('LPUSH', NEXT .. queue, message)
    else
        redis.call('RPUSH', queue, message)  -- and wake a worker up
    end
end
local function release(key, tag, asked)
    local owner = owner_of(key)
    if owner and owner[1] == tag then advance(key, asked) end
end
local function earlier_waits(each)
    if each.rank == '' then return false end
    local before = '(' .. each.rank .. ' '
    return redis.call('EXISTS', WAITING .. each.key) == 1
        or redis.call('ZRANGEBYLEX', RANKED .. each.key, '-', before, 'LIMIT', 0, 1)[1]
end
local function may_go(each, list, message)    -- whether it is handed out; if not, it waits, or was replaced
    local owner = owner_of(each.key)
    if not owner or owner[1] ~= each.tag then
        if redis.call('HDEL', REPLACED, each.tag) == 1 then return false end
        if owner then
            if owner[2] ~= each.id then wait(each, list, message) end
            return false
        end
        own(each)
    end
    if earlier_waits(each) then  -- it came later
        wait(each, list, message)
        advance(each.key)
        return false
    end
    return true
end
"""

# KEYS: the owners; ARGV: the prefix, how many there are of each of what follows, and then
#   - keys that were busy a moment ago, and keys that were free: each key once
#   - of each busy key: the ids of its messages' changes, with spaces between them
#   - of each free key: the key, and its record when its first message owns it
#   - the lists to which the first messages of the free keys were pushed, in the order of these: a list, how many
#   - of each busy key with more than one message: the number of the key, how many messages
#   - of each free key with more than one message: the number of the key, how many behind the first
#   - of each list: how many of the messages that were put behind others wait for it
# The listener sends it after the messages, in the step with its checkpoint. If the keys have not changed, all messages
# are already in their places: the first one of a free key in its list, all others at the end of those that wait for
# their key. So the script finds, in as few calls as possible, the keys that have changed, and corrects the places of
# their messages. It reads a message only if it may have the owner's task id: then it takes the owner's place.
ADMIT: Final = f"""
local P = ARGV[1]
{_ADMITTING}
local busy, free, queues = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local more, lists = tonumber(ARGV[5]), tonumber(ARGV[6])
-- Each is the last word in front of its part.
local AT_KEYS = 6
local AT_IDS = AT_KEYS + busy + free
local AT_RECORDS = AT_IDS + busy
local AT_QUEUES = AT_RECORDS + 2 * free
local AT_MORE = AT_QUEUES + 2 * queues
local AT_LISTS = AT_MORE + 2 * more

local owners = redis.call('HMGET', OWNERS, unpack(ARGV, AT_KEYS + 1, AT_IDS))
local waits, lengths = {{}}, {{}}  -- by the number of the key, if that is not what is usual; by list
for i = AT_MORE + 1, AT_LISTS, 2 do waits[tonumber(ARGV[i])] = tonumber(ARGV[i + 1]) end
for i = AT_LISTS + 1, AT_LISTS + 2 * lists, 2 do lengths[ARGV[i]] = tonumber(ARGV[i + 1]) end

local function id_of(owner)
    return string.match(owner, '^%["[^"]*","([^"]*)"') or ' '
end
local function is_of_these(id, changes)  -- a task id is that of the change, with that of the route behind it if any
    changes = ' ' .. changes .. ' '
    local change = string.gsub(id, '%-[^-]*$', '')
    return string.find(changes, ' ' .. change .. ' ', 1, true) or string.find(changes, ' ' .. id .. ' ', 1, true)
end
local wrong, is_wrong = {{}}, {{}}  -- numbers of the keys that are not as they were
local function note_wrong(i)
    wrong[#wrong + 1] = i
    is_wrong[i] = true
end
local find, words = string.find, ARGV
for i = 1, busy do
    local owner, changes = owners[i], words[AT_IDS + i]
    if not owner then
        note_wrong(i)
    elseif waits[i] then
        if is_of_these(id_of(owner), changes) then note_wrong(i) end
    elseif find(owner, changes, 1, true) then
        note_wrong(i)
    end
end
for i = busy + 1, busy + free do
    if owners[i] then note_wrong(i) end
end

local pushed = {{}}
local function push(list, message)
    pushed[list] = pushed[list] or {{}}
    table.insert(pushed[list], message)
end
local function split(entry)
    local feed = string.find(entry, '\\n', 1, true)
    return string.sub(entry, 1, feed - 1), string.sub(entry, feed + 1)
end
local function count(entry, by)
    local list = split(entry)
    lengths[list] = (lengths[list] or 0) + by
end
local function take_back(key, number)
    local entries = {{}}
    for j = number, 1, -1 do
        entries[j] = redis.call('RPOP', WAITING .. key)
        count(entries[j], -1)
    end
    return entries
end
local function admit_one_by_one(entries)
    for _, entry in ipairs(entries) do
        local list, message = split(entry)
        if admit(described(decoded(message)), list, message) then push(list, message) end
    end
end
local function follow(key, owner, entries)
    for _, entry in ipairs(entries) do
        if string.find(entry, id_of(owner), 1, true) then return admit_one_by_one(entries) end
    end
    redis.call('RPUSH', WAITING .. key, unpack(entries))
    redis.call('SADD', HELD_UP, key)
    for _, entry in ipairs(entries) do count(entry, 1) end
end
local newest = {{}}  -- by list: the messages that were pushed there, the newest first
local function pull_back(number)  -- the first message of a free key; by its number among these
    for i = AT_QUEUES + 1, AT_MORE, 2 do
        local list, pushes = ARGV[i], tonumber(ARGV[i + 1])
        if number <= pushes then
            newest[list] = newest[list] or redis.call('LRANGE', list, 0, pushes - 1)
            local message = newest[list][pushes - number + 1]
            redis.call('LREM', list, 1, message)
            return list .. '\\n' .. message
        end
        number = number - pushes
    end
end
for _, i in ipairs(wrong) do
    local key = ARGV[AT_KEYS + i]
    if i <= busy then
        admit_one_by_one(take_back(key, waits[i] or 1))
    else
        local entries = take_back(key, waits[i] or 0)
        table.insert(entries, 1, pull_back(i - busy))
        follow(key, owners[i], entries)
    end
end

local function call_for_those_right(command, key, at, width, first, last)  -- `width`: words for each key
    if first > last then return end
    if #wrong == 0 then return redis.call(command, key, unpack(ARGV, at + 1, at + width * (last - first + 1))) end
    local found = {{}}
    for i = first, last do
        if not is_wrong[i] then
            for j = 1, width do found[#found + 1] = ARGV[at + width * (i - first) + j] end
        end
    end
    if #found > 0 then redis.call(command, key, unpack(found)) end
end
call_for_those_right('HSET', OWNERS, AT_RECORDS, 2, busy + 1, busy + free)
call_for_those_right('SADD', HELD_UP, AT_KEYS, 1, 1, busy)
for i in pairs(waits) do
    if i > busy and not is_wrong[i] then redis.call('SADD', HELD_UP, ARGV[AT_KEYS + i]) end
end
for list, number in pairs(lengths) do
    if number ~= 0 then redis.call('HINCRBY', LENGTHS, list, number) end
end
for list, messages in pairs(pushed) do redis.call('LPUSH', list, unpack(messages)) end
return 0
"""
ADMIT_DIGEST: Final = hashlib.sha1(ADMIT.encode()).hexdigest()  # noqa: S324  # what Redis calls a script

# KEYS: a list, a queue; ARGV: the prefix, how many messages go from the list to the queue; those with a key as above
MOVE: Final = f"""
local P = ARGV[1]
{GROUPS}
for _ = 1, tonumber(ARGV[2]) do
    local message = redis.call('RPOP', KEYS[1])
    if not message then return 0 end
    local ok, each = pcall(function() return described(decoded(message)) end)
    if not (ok and each) or admit(each, KEYS[2], message) then redis.call('LPUSH', KEYS[2], message) end
end
return 0
"""


class _Script:
    """A script that is sent by its digest, or in full if Redis does not have it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  # what Redis calls a script

    def __call__(self, client: redis.Redis, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        try:
            return client.evalsha(self.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *arguments)


# ARGV: the prefix, then pairs of a list and a message, in the order of sending
_PUT: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
for i = 2, #ARGV, 2 do
    local list, message = ARGV[i], ARGV[i + 1]
    local each = described(decoded(message))
    if not each or admit(each, list, message) then redis.call('LPUSH', list, message) end
end
return 0
""")

# KEYS: unacked, its index; ARGV: the prefix, the delivery tag, the key, whether it is held, the queues at which this
# worker looks right after this script, each between two line feeds: then no other worker has to be woken up
_RELEASE: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
redis.call('ZREM', KEYS[2], ARGV[2])
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end  -- its lease expired, and another worker has it
redis.call('HDEL', REPLACED, ARGV[2])
if ARGV[4] ~= '1' then
    release(ARGV[3], ARGV[2], ARGV[5])
    return 1
end
local owner = owner_of(ARGV[3])
if owner and owner[1] == ARGV[2] then
    owner[5] = 'held'
    redis.call('HSET', OWNERS, ARGV[3], cjson.encode(owner))
    redis.call('SADD', HELD_UP, ARGV[3])
end
return 1
""")

# KEYS: a list; ARGV: the prefix, the most messages to delete
_PURGE: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
local number = 0
while number < tonumber(ARGV[2]) do
    local message = redis.call('RPOP', KEYS[1])
    if not message then break end
    number = number + 1
    local ok, each = pcall(function() return described(decoded(message)) end)
    if ok and each then release(each.key, each.tag) end
end
return number
""")

# KEYS: a sorted set of messages that are due later; ARGV: the prefix, the most messages to delete
_PURGE_LATER: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
local entries = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)
for _, entry in ipairs(entries) do
    local ok, each = pcall(function() return described(decoded(string.sub(entry, 17))) end)
    if ok and each then release(each.key, each.tag) end
end
if #entries > 0 then redis.call('ZREMRANGEBYRANK', KEYS[1], 0, #entries - 1) end
return #entries
""")

# ARGV: the prefix, a key, the list, the most messages to look at, the index of the first one
_PURGE_WAITING: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
local key, list = ARGV[2], ARGV[3]
local entries = redis.call('LRANGE', WAITING .. key, ARGV[5], ARGV[5] + ARGV[4] - 1)
local number = 0
for i, entry in ipairs(entries) do
    if split(entry) == list then
        redis.call('LSET', WAITING .. key, ARGV[5] + i - 1, '')
        number = number + 1
    end
end
if number > 0 then
    redis.call('LREM', WAITING .. key, number, '')
    wait_no_more(key, list, number)
end
local owner = owner_of(key)
if owner and owner[5] then redis.call('SADD', HELD_UP, key) end
return {{#entries, number}}
""")

# The same of those with a rank
_PURGE_RANKED: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
local key, list = ARGV[2], ARGV[3]
local entries = redis.call('ZRANGE', RANKED .. key, ARGV[5], ARGV[5] + ARGV[4] - 1)
local number = 0
for _, entry in ipairs(entries) do
    if split(without_rank(entry)) == list then
        redis.call('ZREM', RANKED .. key, entry)
        number = number + 1
    end
end
if number > 0 then wait_no_more(key, list, number) end
local owner = owner_of(key)
if owner and owner[5] then redis.call('SADD', HELD_UP, key) end
return {{#entries, number}}
""")

# ARGV: the prefix, the key, the task id of its owner, whether only a failed task may lose the key
_SKIP: Final = _Script(f"""
local P = ARGV[1]
{GROUPS}
local owner = owner_of(ARGV[2])
if not owner or owner[2] ~= ARGV[3] or (ARGV[4] == '1' and not owner[5]) then return 0 end
advance(ARGV[2])
return 1
""")


def owners_key(prefix: str) -> str:
    """Return the key of the hash with the owner of each key."""
    return f"{prefix}{_OWNERS}"


def held_up_key(prefix: str) -> str:
    """Return the key of the set with the keys for which messages wait, or that a failed task holds."""
    return f"{prefix}{_HELD_UP}"


def waiting_list(prefix: str, key: str) -> str:
    """Return the key of the list with the messages that wait for this key."""
    return f"{prefix}{_WAITING}{key}"


def next_list(place: str) -> str:
    """Return the list with the messages of this list that are next."""
    return f"cdc:keys:next:{place}"


def key_in(message: object) -> str | None:
    """Return the key of a message as kombu decodes it, None if it has none; for any content."""
    headers = message.get("headers") if isinstance(message, dict) else None
    key = headers.get(KEY_HEADER) if isinstance(headers, dict) else None
    return key if isinstance(key, str) else None


class Keyed(NamedTuple):
    """A message with a key that was acknowledged."""

    tag: str
    key: str
    is_held: bool  # it keeps its key


def release_command(
    unacked: str, index: str, prefix: str, keyed: Keyed, *, is_known: bool, asked: str = ""
) -> list[Any]:
    """Return the command that acknowledges a message, and hands out the next one of its key or holds the key.

    It may be repeated. `unacked` and `index` have the prefix. `is_known`: Redis has the script. `asked`: the queues at
    which a claim looks right after it, with the prefix, each between two line feeds.
    """
    script = ["EVALSHA", _RELEASE.digest] if is_known else ["EVAL", _RELEASE.text]
    return [*script, 2, unacked, index, prefix, keyed.tag, keyed.key, int(keyed.is_held), asked]


class HeldUp(NamedTuple):
    """A key for which messages wait, or that a failed task holds."""

    key: str
    task: str  # of the message that owns the key
    task_id: str
    since: str  # when it became its owner: ISO 8601, UTC
    state: str  # "queued" (or due later), "taken" by a worker, "failed"
    waiting: int  # messages


class Waiting(NamedTuple):
    """A message that waits for its key."""

    task: str
    task_id: str
    queue: str


class MessageGroups:
    """The message groups of a broker: methods for a channel's transport, and queries for people."""

    def __init__(self, client: redis.Redis, prefix: str = "") -> None:
        """`client` adds no prefix by itself."""
        self._client = client
        self._prefix = prefix

    def put(self, *puts: tuple[str, str]) -> None:
        """Put each (list, message), with a key, into its list, or make it wait; raise redis-py's errors.

        All go in one step, in this order.
        """
        words = [word for place, message in puts for word in (self._prefixed(place), message)]
        _PUT(self._client, [self._prefixed(_OWNERS)], [self._prefix, *words])

    def purge(self, places: Iterable[str]) -> int:
        """Delete the messages in these lists, and those that wait for them; return their number."""
        lists = list(map(self._prefixed, places))
        number = sum(map(self._purge_waiting_for, filter(self._number_for, lists)))
        for place in lists:
            for each in (place, self._prefixed(next_list(place))):
                number += self._purge_all(_PURGE, each)
        return number

    def purge_later(self, key: str) -> int:
        """Delete the messages in this sorted set, which has the prefix (`later.py`); return their number."""
        return self._purge_all(_PURGE_LATER, key)

    def _purge_all(self, script: _Script, key: str) -> int:
        number = 0
        while purged := int(script(self._client, [key], [self._prefix, _AT_ONCE])):
            number += purged
        return number

    def _number_for(self, place: str) -> int:
        """Return how many messages wait for a list, which has the prefix."""
        return int(self._client.hget(self._prefixed(LENGTHS), place) or 0)

    def _purge_waiting_for(self, place: str) -> int:
        return sum(
            self._purge_waiting(script, key, place)
            for key in self._held_up()
            for script in (_PURGE_WAITING, _PURGE_RANKED)
        )

    def _purge_waiting(self, script: _Script, key: str, place: str) -> int:
        start, number = 0, 0
        while True:
            arguments = [self._prefix, key, place, _AT_ONCE, start]
            looked_at, purged = script(self._client, [self._prefixed(_OWNERS)], arguments)
            if not looked_at:
                return number
            start += looked_at - purged
            number += purged

    def _held_up(self) -> list[str]:
        return [
            bytes_to_str(key) for key in self._client.sscan_iter(self._prefixed(_HELD_UP), count=_AT_ONCE)
        ]

    def held_up(self) -> Iterator[HeldUp]:
        """Yield the keys that are held up, in no particular order; raise redis-py's errors."""
        for key in self._held_up():
            if (found := self.of_key(key)) is not None:
                yield found

    def count(self) -> int:
        """Return how many keys are held up; raise redis-py's errors."""
        number: Any = self._client.scard(self._prefixed(_HELD_UP))
        return int(number)

    def oldest(self, most: int) -> list[HeldUp]:
        """Return the keys that have been held up longest, up to `most`; raise redis-py's errors."""
        since: list[tuple[float, str]] = []
        keys = self._held_up()
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            records: Any = self._client.hmget(self._prefixed(_OWNERS), some)
            since += [
                (json.loads(record)[3], key) for key, record in zip(some, records, strict=True) if record
            ]
        found = (self.of_key(key) for _, key in sorted(since)[:most])
        return [each for each in found if each is not None]

    def of_key(self, key: str) -> HeldUp | None:
        """Return the state of a key; None if no message has it."""
        record: Any = self._client.hget(self._prefixed(_OWNERS), key)
        if record is None:
            return None
        tag, task_id, task, since, *held = json.loads(record)
        return HeldUp(
            key=key,
            task=task,
            task_id=task_id,
            since=datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
            state="failed" if held else "taken" if self._is_taken(tag) else "queued",
            waiting=self._number_waiting(key),
        )

    def waiting(self, key: str, *, most: int) -> list[Waiting]:
        """Return the first messages that wait for a key, in order."""
        pipe = self._client.pipeline()
        pipe.lrange(self._prefixed(f"{_WAITING}{key}"), 0, most - 1)
        pipe.zrange(self._prefixed(f"{_RANKED}{key}"), 0, most - 1)
        first, ranked = pipe.execute()
        entries = [*map(bytes_to_str, first), *(bytes_to_str(each).split("\n", 1)[1] for each in ranked)]
        return [_waiting(entry, self._prefix) for entry in entries[:most]]

    def _number_waiting(self, key: str) -> int:
        pipe = self._client.pipeline()
        pipe.llen(self._prefixed(f"{_WAITING}{key}"))
        pipe.zcard(self._prefixed(f"{_RANKED}{key}"))
        return sum(pipe.execute())

    def skip(self, key: str, task_id: str) -> bool:
        """Let a key continue without the task that owns it; return False if it has another owner by now."""
        arguments = [self._prefix, key, task_id, 0]
        return bool(_SKIP(self._client, [self._prefixed(_OWNERS)], arguments))

    def let_go(self, key: str, task_id: str) -> bool:
        """Let a key continue that this failed task holds; return whether it did hold it."""
        arguments = [self._prefix, key, task_id, 1]
        return bool(_SKIP(self._client, [self._prefixed(_OWNERS)], arguments))

    def _is_taken(self, tag: str) -> bool:
        leases: Any = self._client.hkeys(self._prefixed("cdc:leases"))
        pipe = self._client.pipeline(transaction=False)
        for lease in map(bytes_to_str, leases):
            pipe.hexists(self._prefixed(f"cdc:unacked:{lease}"), tag)
        return any(pipe.execute())

    def _prefixed(self, key: str) -> str:
        return f"{self._prefix}{key}"


def _waiting(entry: str, prefix: str) -> Waiting:
    place, message = entry.split("\n", 1)
    headers = json.loads(message)["headers"]
    return Waiting(str(headers.get("task")), str(headers.get("id")), place.removeprefix(prefix))
