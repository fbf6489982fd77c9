"""Master tables in Redis: `get("roles")` for readers, `refresh_master_cache` for routes and for hands.

A key holds a JSON array of the table's rows, each an object of column and value, in the order of `id`.

Two refreshes of one table may overlap, and the one that read first may be the last to write. Time stamps,
log positions and tickets do not tell whose read was the newer: all of them are taken before or after the
read, never with it. So none is compared. A refresh asks, before it reads, who wrote last; its write is
taken only if that is still so. Then whatever is in the cache was written, and therefore read, before this
read began: the new rows are the newer ones, on every database whose queries see what was committed
before them (a primary, not a replica). If somebody else did write meanwhile, there are two cases:

- The other began after this refresh did. It has seen all that this one was asked for: nothing left to do.
- The other began earlier. Nobody can say whose rows are newer: read again. That ends, since each of those who
  began earlier writes once.

Who began when is told by tickets from Redis' own clock: they go on even if Redis forgets the last one.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy
import structlog
from celery import signals

from cdc_tasks import cache, db
from cdc_tasks.celery import app
from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "TABLE_TO_CACHE_KEYS",
    "CacheKey",
    "JsonArray",
    "as_json",
    "get",
    "refill_master_caches",
    "refresh",
    "refresh_all_master_caches",
    "refresh_master_cache",
]

log = structlog.get_logger()

_STALE = 3600  # seconds; a refill that no worker has taken by then is not needed any more
_UNFINISHED_TTL = 120  # seconds; what a refresh that died leaves behind is gone after that


@dataclass(frozen=True, slots=True)
class CacheKey:
    """One key that a table feeds."""

    name: str  # the key in Redis; what readers ask for is the part after "master:"
    keep: Callable[[Mapping[str, Any]], bool] = lambda _row: True  # which rows belong into it


# Your own tables: `TABLE_TO_CACHE_KEYS["countries"] = [CacheKey("master:countries")]`, in a module that
# CDC_TASK_MODULES names. A table outside the search path is `schema.table`.
TABLE_TO_CACHE_KEYS: dict[str, list[CacheKey]] = {
    "departments": [CacheKey("master:departments")],
    "priorities": [CacheKey("master:priorities")],
    "roles": [CacheKey("master:roles")],
    "statuses": [
        CacheKey("master:statuses"),
        CacheKey("master:statuses:open", keep=lambda row: not row.get("is_closed")),
    ],
}


class UnknownTableError(CDCError):
    """This table feeds no key of the master cache."""


@app.task(name="cdc_tasks.refresh_master_cache")
def refresh_master_cache(table: str) -> str:
    """Put fresh rows of `table` into each key that it feeds."""
    outcome = refresh(table)
    log.info("master_cache_refreshed", table=table, outcome=outcome)
    return outcome


@app.task(name="cdc_tasks.refresh_all_master_caches")
def refresh_all_master_caches() -> str:
    """Refresh every table, each in a task of its own."""
    for table in TABLE_TO_CACHE_KEYS:
        refresh_master_cache.delay(table)
    return f"{len(TABLE_TO_CACHE_KEYS)} refreshes queued"


@app.task(name="cdc_tasks.refill_master_caches")
def refill_master_caches() -> str:
    """Refresh the tables that have a key missing in Redis; sent when a worker starts and finds some missing."""
    refilled = [table for table in TABLE_TO_CACHE_KEYS if _is_missing(table) and _refill(table)]
    return f"refilled: {', '.join(refilled) or 'nothing'}"


@signals.worker_ready.connect
def _refill_an_empty_redis(**_: Any) -> None:
    """Ask for it in a task, which is tried again where the database or Redis is away."""
    try:
        is_full = not any(map(_is_missing, TABLE_TO_CACHE_KEYS))
    except cache.CacheAwayError:
        is_full = False
    if not is_full:
        refill_master_caches.apply_async(expires=_STALE)


def _is_missing(table: str) -> bool:
    names = [key.name for key in TABLE_TO_CACHE_KEYS[table]]
    with cache.errors_translated():
        return int(cache.client().exists(*names)) < len(names)


def _refill(table: str) -> bool:
    try:
        log.info("master_cache_refilled", table=table, outcome=refresh(table))
    except db.DatabaseRefusedError as error:  # not every database has each of the sample's tables
        log.warning("master_cache_not_refilled", table=table, error=error.message)
        return False
    return True


def get(name: str) -> list[dict[str, Any]]:
    """Return the rows of `master:<name>`, read from the database where Redis has none."""
    key = f"master:{name}"
    table = _table_of(key)
    for _ in range(3):  # a key can be evicted as soon as it is there
        with cache.errors_translated():
            found = cache.client().get(key)
        if found is not None:
            rows: list[dict[str, Any]] = json.loads(found)  # orjson would round big integers
            return rows
        refresh(table)
    raise cache.CacheAwayError(f"Redis does not keep {key}: is its memory full?")


def refresh(table: str) -> str:
    """Read `table` and replace its keys in one step; returns what came of it. Raises UnknownTableError."""
    keys = _keys_of(table)
    while True:
        attempt = _begin(table)
        rows = _read(table, keys, attempt)
        outcome = _replace(table, keys, attempt)
        if outcome != "again":
            return f"{outcome}: {rows} rows of {table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    ticket: str  # of this refresh: greater than that of any that began before
    written: str  # the ticket of whoever had written last when this refresh began; empty: nobody


# KEYS: the last ticket given out, the ticket of the last write
_BEGIN = """
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local ticket = string.format('%.0f', math.max(time[1] * 1000000 + time[2], last + 1))
redis.call('SET', KEYS[1], ticket)
return {ticket, redis.call('GET', KEYS[2]) or ''}
"""

# KEYS: the ticket of the last write, then pairs of fresh rows and the key that they are for
# ARGV: my ticket, the ticket of the last write when I began
_REPLACE = """
local written = redis.call('GET', KEYS[1]) or ''
if written == ARGV[1] then return 'written' end  -- the answer got lost, and the client asked again

local outcome = 'written'
if written ~= ARGV[2] then
    outcome = (tonumber(written) or 0) > tonumber(ARGV[1]) and 'superseded' or 'again'
end
for i = 2, #KEYS, 2 do
    if redis.call('EXISTS', KEYS[i]) == 0 and outcome == 'written' then outcome = 'again' end
end
for i = 2, #KEYS, 2 do
    if outcome == 'written' then
        redis.call('RENAME', KEYS[i], KEYS[i + 1])
        redis.call('PERSIST', KEYS[i + 1])
    else
        redis.call('DEL', KEYS[i])
    end
end
if outcome == 'written' then redis.call('SET', KEYS[1], ARGV[1]) end
return outcome
"""


def _begin(table: str) -> _Attempt:
    with cache.errors_translated():
        ticket, written = cache.client().register_script(_BEGIN)(
            keys=[_begun_key(table), _written_key(table)]
        )
    return _Attempt(ticket=ticket.decode(), written=written.decode())


def _read(table: str, keys: list[CacheKey], attempt: _Attempt) -> int:
    """Stream the rows into Redis, beside the keys that readers see: no table has to fit into memory here."""
    arrays = [(key.keep, JsonArray(_fresh_key(key, attempt), ttl=_UNFINISHED_TTL)) for key in keys]
    count = 0
    for row in _rows(table):
        count += 1
        for keep, array in arrays:
            if keep(row):
                array.append(row)
    for _, array in arrays:
        array.close()
    return count


def _replace(table: str, keys: list[CacheKey], attempt: _Attempt) -> str:
    pairs = [name for key in keys for name in (_fresh_key(key, attempt), key.name)]
    with cache.errors_translated():
        outcome = cache.client().register_script(_REPLACE)(
            keys=[_written_key(table), *pairs], args=[attempt.ticket, attempt.written]
        )
    return str(outcome.decode())


def _rows(table: str) -> Iterator[dict[str, Any]]:
    schema, _, name = table.rpartition(".")
    query = (
        sqlalchemy.select(sqlalchemy.text("*"))
        .select_from(sqlalchemy.table(name, schema=schema or None))
        .order_by(sqlalchemy.column("id"))
    )
    with db.session() as session:  # one statement: one snapshot, whatever the isolation level
        for row in session.execute(query, execution_options={"yield_per": 1000}).mappings():
            yield dict(row)


def _keys_of(table: str) -> list[CacheKey]:
    if not isinstance(table, str):
        raise UnknownTableError(
            "refresh_master_cache takes the name of a table.",
            hint='router.register(…, "cdc_tasks.refresh_master_cache", args=lambda change: [change.table])',
        )
    if table not in TABLE_TO_CACHE_KEYS:
        raise UnknownTableError(
            f"{table!r} feeds no key of the master cache; these do: {', '.join(TABLE_TO_CACHE_KEYS)}.",
            hint=f'TABLE_TO_CACHE_KEYS["{table}"] = [CacheKey("master:{table}")]',
        )
    return TABLE_TO_CACHE_KEYS[table]


def _table_of(key: str) -> str:
    for table, keys in TABLE_TO_CACHE_KEYS.items():
        if key in (each.name for each in keys):
            return table
    known = ", ".join(each.name for keys in TABLE_TO_CACHE_KEYS.values() for each in keys)
    raise UnknownTableError(f"No table feeds {key!r}; there are: {known}.")


def _begun_key(table: str) -> str:
    return f"cdc:master-cache:{table}:begun"


def _written_key(table: str) -> str:
    return f"cdc:master-cache:{table}:written"


def _fresh_key(key: CacheKey, attempt: _Attempt) -> str:
    return f"cdc:master-cache:fresh:{key.name}:{attempt.ticket}"


# --- Rows on their way into the cache -------------------------------------------------------------------

_PIECE = 1 << 20  # bytes


class JsonArray:
    """A JSON array that is written to a key of Redis piece by piece; complete after `close`."""

    def __init__(self, key: str, *, ttl: int) -> None:
        """`ttl`: seconds after which Redis drops the key, unless somebody takes it over."""
        self._key = key
        self._ttl = ttl
        self._pending = bytearray(b"[")
        self._offset = 0  # where the next piece goes: a piece that is sent twice lands in the same place
        self._is_first = True

    def append(self, row: dict[str, Any]) -> None:
        if not self._is_first:
            self._pending += b","
        self._is_first = False
        self._pending += as_json(row)
        if len(self._pending) >= _PIECE:
            self._flush()

    def close(self) -> None:
        self._pending += b"]"
        self._flush()

    def _flush(self) -> None:
        with cache.errors_translated(), cache.client().pipeline() as pipeline:
            pipeline.setrange(self._key, self._offset, bytes(self._pending))
            pipeline.expire(self._key, self._ttl)
            pipeline.execute()
        self._offset += len(self._pending)
        self._pending.clear()


def as_json(row: dict[str, Any]) -> bytes:
    """Return the row as the changes have it: numeric as text, times as ISO 8601 in UTC, bytes as base64."""
    try:
        return orjson.dumps(row, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, inside a JSON column
        return json.dumps(row, default=_plain, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    return str(value)
