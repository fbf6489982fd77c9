"""The record of messages: who got which message, by which service, after which attempts, and what is held back.

It is only for people: no decision depends on it, and messages are sent even if it cannot be written. The last
`CDC_MESSAGES_KEPT` finished messages are a stream in the Redis of CACHE_URL. Messages that are held back (quiet hours,
a rate limit, a retry) are in a hash, and in a sorted set by the time when they continue. The record has ids of accounts
and rows, and kinds of errors: no text, no name, no address, no secret.

A message is recorded in the same script that marks it as sent or makes it wait. Only a failed message, or one in quiet
hours, needs an additional round trip.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import NoPermissionError, RedisError

from cdc_tasks import cache
from cdc_tasks.errors import CDCError
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = [
    "ENDED",
    "GAVE_UP",
    "KEYS",
    "NOT_SENT",
    "QUIET_HOURS",
    "RATE_LIMIT",
    "RETRY",
    "SENT",
    "WAITS",
    "Entry",
    "Found",
    "HeldBack",
    "MessageNote",
    "RecordRefusedError",
    "count",
    "ended",
    "find",
    "find_held",
    "held_back",
]

SENT: Final = "sent"
GAVE_UP: Final = "gave up"
NOT_SENT: Final = "not sent"  # there was nothing to send
QUIET_HOURS: Final = "quiet hours"
RATE_LIMIT: Final = "rate limit"
RETRY: Final = "retry"

_LOG: Final = "cdc:messages"  # a stream
_HELD: Final = "cdc:messages:held"  # a hash: id, milliseconds since when, and the note
_UNTIL: Final = "cdc:messages:until"  # a sorted set: id, milliseconds until when
KEYS: Final = (_LOG, _HELD, _UNTIL)
_MOST_HELD: Final = 10_000  # beyond this, those that should have continued longest ago are removed
_FORGOTTEN: Final = 3600.0  # seconds; messages overdue for longer were purged, or died with their worker
_PAGE: Final = 2_000  # entries that are read at a time, at most
_MOST_LOOKED_AT: Final = 20_000
_PLACE: Final = re.compile(r"\d{1,15}-\d{1,15}")

# Functions for scripts. `first` is the place of KEYS among the script's keys; an empty text notes nothing. Errors, such
# as a missing right of the Redis user, are ignored: the record must not stop a message.
WAITS: Final = f"""
local function note_wait(first, id, wait, text)
    local log, held, untils = KEYS[first], KEYS[first + 1], KEYS[first + 2]
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local found = redis.call('HGET', held, id)
    local since = found and string.match(found, '^%d+') or string.format('%.0f', now)
    if not found and redis.call('HLEN', held) >= {_MOST_HELD} then
        local oldest = redis.call('ZRANGE', untils, 0, 0)[1]
        if oldest then
            redis.call('ZREM', untils, oldest)
            redis.call('HDEL', held, oldest)
        end
    end
    redis.call('HSET', held, id, since .. ' ' .. text)
    redis.call('ZADD', untils, string.format('%.0f', now + wait), id)
end
local function message_waits(first, id, wait, text)
    if text ~= '' then pcall(note_wait, first, id, wait, text) end
end
"""
ENDED: Final = """
local function note_end(first, id, kept, text)
    local log, held, untils = KEYS[first], KEYS[first + 1], KEYS[first + 2]
    local found = redis.call('HGET', held, id)
    if found then
        redis.call('HDEL', held, id)
        redis.call('ZREM', untils, id)
    end
    local since = found and string.match(found, '^%d+') or ''
    if tonumber(kept) > 0 then redis.call('XADD', log, 'MAXLEN', '~', kept, '*', 'note', text, 'since', since) end
end
local function message_ended(first, id, kept, text)
    if text ~= '' then pcall(note_end, first, id, kept, text) end
end
"""

# KEYS: as KEYS; ARGV: the id, milliseconds to wait, the note
_NOTE_WAIT: Final = f"{WAITS} message_waits(1, ARGV[1], tonumber(ARGV[2]), ARGV[3])"
# KEYS: as KEYS; ARGV: the id, how many to keep, the note
_NOTE_END: Final = f"{ENDED} message_ended(1, ARGV[1], ARGV[2], ARGV[3])"


class RecordRefusedError(CDCError):
    """The Redis user may not read the record of messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageNote:
    """One message to one account, and its state so far."""

    id: str  # the delivery's, which is its task's id
    account_id: int
    kind: str  # e.g. ticket_insert
    subject_id: int  # the ticket, user, …
    change_id: str
    service: str
    state: str = ""
    reason: str = ""  # the kind of the last error, or why there was nothing to send
    tries: Sequence[Mapping[str, Any]] = ()  # failed attempts: at, error (its kind), waits (seconds)

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what `text` wrote; raises TypeError, ValueError."""
        return cls(**json.loads(text))

    def text(self, state: str, reason: str = "") -> str:
        """Return the note for the scripts; empty if none is kept."""
        if not worker_settings().cdc_messages_kept:
            return ""
        note = replace(self, state=state, reason=reason)
        fields = {name: value for name, value in asdict(note).items() if value not in ("", ())}
        return json.dumps(fields, separators=(",", ":"))

    def waits(self, seconds: float, state: str, reason: str = "") -> None:
        """Record that it is held back for that time. Errors of the record are ignored."""
        self._note(_NOTE_WAIT, int(seconds * 1000), self.text(state, reason))

    def ended(self, state: str, reason: str = "") -> None:
        """Record that it has ended without being sent."""
        self._note(_NOTE_END, worker_settings().cdc_messages_kept, self.text(state, reason))

    def _note(self, script: str, number: int, text: str) -> None:
        if text:
            with suppress(cache.CacheAwayError, RedisError), cache.errors_translated():
                cache.client().register_script(script)(keys=KEYS, args=[self.id, number, text])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A message that has ended."""

    place: str  # in the record
    at: datetime
    held_since: datetime | None  # when it was first held back; None: never
    note: MessageNote


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A message that is held back."""

    since: datetime
    until: datetime
    note: MessageNote


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Some messages, the newest first."""

    entries: Sequence[Entry]
    older: str | None  # the place to continue after; None: there are no older ones


def ended(
    *,
    behind: str | None = None,
    accounts: Collection[int] | None = None,
    service: str = "",
    state: str = "",
    most: int = 100,
) -> Found:
    """Return the last finished messages. Raises CacheAwayError, RecordRefusedError.

    `behind`: only messages older than this place. `accounts`: None for all. It examines at most 20,000 messages, to
    stay fast.
    """
    wanted = _pattern(accounts, service, state)
    found, place, looked, size = list[Entry](), behind, 0, 2 * most
    while looked < _MOST_LOOKED_AT:
        page = _page(place, size)
        for name, fields in page:
            looked, place = looked + 1, name.decode()
            if wanted.search(fields[b"note"]):
                found.append(_entry(place, fields))
                if len(found) == most:
                    return Found(entries=found, older=place)
        if len(page) < size:
            return Found(entries=found, older=None)
        size = min(2 * size, _PAGE)
    return Found(entries=found, older=place)


def _pattern(accounts: Collection[int] | None, service: str, state: str) -> re.Pattern[bytes]:
    """Return a pattern that the text of each wanted note matches, so that most notes need no parsing."""
    parts = []
    if accounts is not None:
        parts.append(rf'"account_id":(?:{"|".join(map(str, sorted(accounts))) or "none"}),')
    parts += [
        f"{re.escape(json.dumps(name))}:{re.escape(json.dumps(value))}"
        for name, value in (("service", service), ("state", state))
        if value
    ]
    return re.compile(".*".join(parts).encode())


def count() -> int:
    """Return how many messages the record has; raises CacheAwayError."""
    with _errors_translated():
        return int(cache.client().xlen(_LOG))


def find(place: str) -> Entry | None:
    """Return the message at a place of the record; None if it is no longer there. Raises what `ended` raises."""
    if _PLACE.fullmatch(place) is None:
        return None
    with _errors_translated():
        found: Any = cache.client().xrange(_LOG, place, place)
    return _entry(place, found[0][1]) if found else None


def held_back(most: int = 200) -> tuple[list[HeldBack], int]:
    """Return the messages that are held back, next one first, and their number. Raises what `ended` raises."""
    client: Any = cache.client()
    lowest = int((time() - _FORGOTTEN) * 1000)
    with _errors_translated():
        number = int(client.zcount(_UNTIL, lowest, "+inf"))
        names = client.zrangebyscore(_UNTIL, lowest, "+inf", start=0, num=most, withscores=True)
        texts = client.hmget(_HELD, [name for name, _ in names]) if names else []
    notes = [(until, text) for (_, until), text in zip(names, texts, strict=True) if text is not None]
    return [_held(until, text) for until, text in notes], number


def find_held(message: str) -> HeldBack | None:
    """Return the message with this id if it is held back; raises what `ended` raises."""
    client: Any = cache.client()
    with _errors_translated():
        until, text = client.zscore(_UNTIL, message), client.hget(_HELD, message)
    return None if until is None or text is None else _held(until, text)


def _page(behind: str | None, size: int) -> list[Any]:
    with _errors_translated():
        client: Any = cache.client()
        found: list[Any] = client.xrevrange(_LOG, "+" if behind is None else _before(behind), "-", count=size)
    return found


def _before(place: str) -> str:
    """Return the place before this one: servers before 6.2 do not support open intervals."""
    if _PLACE.fullmatch(place) is None:
        return "+"
    milliseconds, number = map(int, place.split("-"))
    return f"{milliseconds}-{number - 1}" if number else str(milliseconds - 1)


def _entry(place: str, fields: Mapping[bytes, bytes]) -> Entry:
    since = fields.get(b"since")
    return Entry(
        place=place,
        at=_moment(place.partition("-")[0]),
        held_since=_moment(since) if since else None,
        note=MessageNote.parse(fields[b"note"]),
    )


def _held(until: float, text: bytes) -> HeldBack:
    since, _, note = text.partition(b" ")
    return HeldBack(since=_moment(since), until=_moment(until), note=MessageNote.parse(note))


def _moment(milliseconds: str | bytes | float) -> datetime:
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        with cache.errors_translated():
            yield
    except NoPermissionError as error:
        raise RecordRefusedError(
            f"Redis at {cache.where()} refuses to read the record of messages: {error}",
            hint="Allow it: ACL SETUSER <user> +xadd +xrange +xrevrange",
        ) from error
