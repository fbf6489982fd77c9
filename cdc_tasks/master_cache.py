"""Master tables in Redis: readers call `get("roles")`, routes send the task `refresh_master_cache`.

`MasterCache.register("roles", key="master:roles")` adds a table, in a module that the workers import. A key has a JSON
array of the table's rows, in the order of `order_by`. Each row is an object of columns and values.

Two refreshes of one table may overlap, and the one that read first may write last. Time stamps, log positions and
tickets do not show which read was newer, because they are taken before or after the read, never with it. So they are
not compared. Instead, a refresh notes before it reads which refresh wrote last, and writes only if that has not
changed. Then the rows in the cache were written, and therefore read, before this read began, and the new rows are
newer. This holds on every database whose queries see all earlier commits (a primary, not a replica). If another refresh
did write in between, there are two cases:

- It began after this one. Its rows include every change for which this one was sent: nothing is left to do.
- It began before this one. It is unknown which rows are newer, so this one reads again. That ends, because each refresh
  that began earlier writes once.

Tickets from Redis' clock show which refresh began first. They increase even if Redis loses the last one.
"""

from __future__ import annotations

import getpass
import json
import socket
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import orjson
import sqlalchemy
import structlog
from celery import current_app, current_task, shared_task, signals

from cdc_tasks import cache, db
from cdc_tasks.errors import CDCError
from cdc_tasks.master_cache_notes import WriteNote, note_key, written_key
from cdc_tasks.routing.tables import RouteError, table_of
from cdc_tasks.words import counted
from cdc_tasks.worker.base_task import RetryingTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "TABLE_TO_CACHE_KEYS",
    "CacheKey",
    "JsonArray",
    "MasterCache",
    "as_json",
    "get",
    "refill_master_caches",
    "refresh",
    "refresh_all_master_caches",
    "refresh_master_cache",
]

log = structlog.get_logger()

_STALE = 3600  # seconds; a refill that no worker starts within this time expires
_UNFINISHED_TTL = 120  # seconds; then the keys of a refresh that died expire


class UnknownTableError(CDCError):
    """This table is not in the master cache."""


class MasterCacheError(CDCError):
    """A table cannot be put into the master cache as registered."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """One key with rows of a table."""

    name: str  # the key in Redis; readers pass the part after "master:"
    keep: Callable[[Mapping[str, Any]], bool] = lambda _row: True  # whether it includes a row
    where: str | None = None  # SQL: only these rows
    order_by: tuple[str, ...] = ("id",)  # columns; "-name" is descending


TABLE_TO_CACHE_KEYS: dict[str, list[CacheKey]] = {}
"""The keys of each registered table; a table outside the search path is `schema.table`."""


class MasterCache:
    """The tables of the master cache, one list per process."""

    @staticmethod
    def register(
        table: Any,
        *,
        key: str | None = None,
        where: str | None = None,
        order_by: str | Sequence[str] = "id",
        keep: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> CacheKey:
        """Keep the rows of a table in the Redis key `key`, by default `master:<table>`.

        `table` is `"table"`, `"schema.table"`, or a SQLAlchemy or Django model. `order_by` names columns; `"-name"` is
        descending. `where` is an SQL condition that goes into the query unchanged: never put a user's input into it.
        `keep` is a condition in Python.

        A table may have several keys. All of them are read in one query, so they have the same order.

        Raises MasterCacheError.
        """
        name = _name_of(table)
        columns = (order_by,) if isinstance(order_by, str) else tuple(order_by)
        made = CacheKey(
            key or f"master:{name}", **({} if keep is None else {"keep": keep}), where=where, order_by=columns
        )
        others = [each for each in TABLE_TO_CACHE_KEYS.get(name, ()) if each.name != made.name]
        _check_key(name, made, others)
        TABLE_TO_CACHE_KEYS[name] = [*others, made]
        return made


def _name_of(table: Any) -> str:
    try:
        schema, name = table_of(table)
    except RouteError as error:
        raise MasterCacheError(error.message, hint=error.hint) from None
    if not name.strip():
        raise MasterCacheError(
            f"table={table!r} is not a name.", hint='Write e.g. MasterCache.register("roles").'
        )
    return f"{schema}.{name}" if schema else name


def _check_key(table: str, key: CacheKey, others: Sequence[CacheKey]) -> None:
    if not key.order_by or not all(each.lstrip("-") for each in map(str, key.order_by)):
        raise MasterCacheError(
            f"order_by={key.order_by!r} of {table} are not names of columns.",
            hint='Write e.g. order_by=["position", "id"].',
        )
    if key.where is not None and not str(key.where).strip():
        raise MasterCacheError(
            f"where={key.where!r} of {table} is not a condition.", hint='Write e.g. where="NOT is_closed".'
        )
    if any(other.order_by != key.order_by for other in others):
        raise MasterCacheError(
            f"{key.name} of {table} has order_by={key.order_by!r}, and {others[0].name} has {others[0].order_by!r}.",
            hint="Give all keys of a table the same order: they are read in one query.",
        )
    owner = next(
        (other for other, keys in TABLE_TO_CACHE_KEYS.items() if other != table and key.name in _names(keys)),
        None,
    )
    if owner is not None:
        raise MasterCacheError(
            f"The key {key.name} belongs to {owner}.", hint=f"Give {table} another one: key=…"
        )


def _names(keys: Sequence[CacheKey]) -> list[str]:
    return [each.name for each in keys]


@shared_task(name="cdc_tasks.refresh_master_cache", base=RetryingTask)
def refresh_master_cache(table: str) -> str:
    """Read `table` and replace each of its keys."""
    outcome = refresh(table)
    log.info("master_cache_refreshed", table=table, outcome=outcome)
    return outcome


@shared_task(name="cdc_tasks.refresh_all_master_caches", base=RetryingTask)
def refresh_all_master_caches() -> str:
    """Refresh every table, each in its own task."""
    for table in TABLE_TO_CACHE_KEYS:
        refresh_master_cache.delay(table)
    return f"{len(TABLE_TO_CACHE_KEYS)} refreshes queued"


@shared_task(name="cdc_tasks.refill_master_caches", base=RetryingTask)
def refill_master_caches() -> str:
    """Refresh the tables that lack a key in Redis. A worker that finds such tables at start-up sends this task."""
    refilled = [table for table in TABLE_TO_CACHE_KEYS if _is_missing(table) and _refill(table)]
    return f"refilled: {', '.join(refilled) or 'nothing'}"


@signals.worker_ready.connect
def _refill_an_empty_redis(sender: Any, **_: Any) -> None:
    """Send a task if keys are missing. A task is retried while the database or Redis is away."""
    if refill_master_caches.name not in sender.app.tasks:
        return
    try:
        is_full = not any(map(_is_missing, TABLE_TO_CACHE_KEYS))
    except cache.CacheAwayError:
        is_full = False
    cache.close_idle()  # this is the worker's main process, which needs it no longer
    if not is_full:
        with sender.app.connection_for_write() as connection:
            options: dict[str, Any] = {"expires": _STALE, "connection": connection}
            refill_master_caches.apply_async(**options)


def _is_missing(table: str) -> bool:
    names = [key.name for key in TABLE_TO_CACHE_KEYS[table]]
    with cache.errors_translated():
        return int(cache.client().exists(*names)) < len(names)


def _refill(table: str) -> bool:
    try:
        log.info("master_cache_refilled", table=table, outcome=refresh(table))
    except db.DatabaseRefusedError as error:  # a database may lack some of the sample's tables
        log.warning("master_cache_not_refilled", table=table, error=error.message)
        return False
    return True


def get(name: str) -> list[dict[str, Any]]:
    """Return the rows of the key `master:<name>`, or `<name>`; if Redis lacks the key, refresh it first.

    Raises UnknownTableError if no table registered in this process has such a key.
    """
    key, table = _table_of(name)
    for _ in range(3):  # a key may be evicted right after it was written
        with cache.errors_translated():
            found = cache.client().get(key)
        if found is not None:
            rows: list[dict[str, Any]] = json.loads(found)  # orjson would round large integers
            return rows
        refresh(table)
    raise cache.CacheAwayError(f"Redis evicted {key} at once. Is its memory full?")


def refresh(table: str) -> str:
    """Read `table`, replace its keys atomically, and return the outcome. Raises UnknownTableError."""
    keys = _keys_of(table)
    while True:
        attempt = _begin(table)
        rows, by_key = _read(table, keys, attempt)
        outcome = _replace(table, keys, attempt, by_key)
        if outcome != "again":
            return f"{outcome}: {counted(rows, 'row')} of {table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    ticket: str  # of this refresh: greater than the ticket of each earlier one
    written: str  # the ticket of the refresh that wrote last, when this one began; empty: none


# KEYS: the last ticket issued, the ticket of the last write
_BEGIN = """
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local ticket = string.format('%.0f', math.max(time[1] * 1000000 + time[2], last + 1))
redis.call('SET', KEYS[1], ticket)
return {ticket, redis.call('GET', KEYS[2]) or ''}
"""

# KEYS: the ticket of the last write, what is noted of it, then pairs: the key with the new rows, the key to replace
# ARGV: the ticket of this refresh, the ticket of the last write when it began, the note
_REPLACE = """
local written = redis.call('GET', KEYS[1]) or ''
if written == ARGV[1] then return 'written' end  -- the answer was lost, and the client repeats the call

local outcome = 'written'
if written ~= ARGV[2] then
    outcome = (tonumber(written) or 0) > tonumber(ARGV[1]) and 'superseded' or 'again'
end
for i = 3, #KEYS, 2 do
    if redis.call('EXISTS', KEYS[i]) == 0 and outcome == 'written' then outcome = 'again' end
end
for i = 3, #KEYS, 2 do
    if outcome == 'written' then
        redis.call('RENAME', KEYS[i], KEYS[i + 1])
        redis.call('PERSIST', KEYS[i + 1])
    else
        redis.call('DEL', KEYS[i])
    end
end
if outcome == 'written' then
    redis.call('SET', KEYS[1], ARGV[1])
    redis.call('SET', KEYS[2], ARGV[3])
end
return outcome
"""


def _begin(table: str) -> _Attempt:
    with cache.errors_translated():
        ticket, written = cache.client().register_script(_BEGIN)(keys=[_begun_key(table), written_key(table)])
    return _Attempt(ticket=ticket.decode(), written=written.decode())


def _read(table: str, keys: list[CacheKey], attempt: _Attempt) -> tuple[int, dict[str, int]]:
    """Return the number of rows of the table, and of each key.

    Stream the rows into temporary keys, so that a table does not have to fit into memory here.
    """
    arrays = [(key.keep, JsonArray(_fresh_key(key, attempt), ttl=_UNFINISHED_TTL)) for key in keys]
    count = 0
    for row, belongs in _rows(table, keys):
        count += 1
        for (keep, array), is_in in zip(arrays, belongs, strict=True):
            if is_in and keep(row):
                array.append(row)
    for _, array in arrays:
        array.close()
    return count, {key.name: array.length for key, (_, array) in zip(keys, arrays, strict=True)}


def _replace(table: str, keys: list[CacheKey], attempt: _Attempt, rows: Mapping[str, int]) -> str:
    pairs = [name for key in keys for name in (_fresh_key(key, attempt), key.name)]
    with cache.errors_translated():
        outcome = cache.client().register_script(_REPLACE)(
            keys=[written_key(table), note_key(table), *pairs],
            args=[attempt.ticket, attempt.written, WriteNote(attempt.ticket, _writer(), rows).to_json()],
        )
    return str(outcome.decode())


def _writer() -> str:
    """Return who refreshes: the id of the task, which contains that of its change; else the user and the machine."""
    task: Any = current_task
    if task and not task.request.called_directly:
        return str(task.request.id)
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _rows(table: str, keys: list[CacheKey]) -> Iterator[tuple[dict[str, Any], Sequence[object]]]:
    """Yield each row, and for each key whether its `where` holds."""
    flags = {f"{_FLAG}{number}": key.where for number, key in enumerate(keys)}
    with db.session() as session:  # one statement: one snapshot at any isolation level
        for row in session.execute(
            _query(table, keys, flags), execution_options={"yield_per": 1000}
        ).mappings():
            values = dict(row)
            yield values, [values.pop(flag, True) for flag in flags]


_FLAG: Final = "cdc where "  # no column has this name


def _query(table: str, keys: list[CacheKey], flags: Mapping[str, str | None]) -> sqlalchemy.Select[Any]:
    """Return the query: all names are quoted, and each `where` is in its own brackets."""
    schema, _, name = table.rpartition(".")
    conditions = {flag: _condition(where) for flag, where in flags.items() if where is not None}
    columns = [
        sqlalchemy.case((each, sqlalchemy.literal_column("1")), else_=sqlalchemy.literal_column("0")).label(
            flag
        )
        for flag, each in conditions.items()
    ]
    query = sqlalchemy.select(sqlalchemy.text("*"), *columns).select_from(
        sqlalchemy.table(name, schema=schema or None)
    )
    if len(conditions) == len(keys):
        query = query.where(sqlalchemy.or_(*conditions.values()))
    return query.order_by(*map(_order, keys[0].order_by))


def _condition(where: str) -> sqlalchemy.ColumnElement[bool]:
    text = where.replace(":", "\\:")  # so that a colon does not start a parameter
    return sqlalchemy.type_coerce(sqlalchemy.text(f"({text})"), sqlalchemy.Boolean())


def _order(name: str) -> sqlalchemy.ColumnElement[Any]:
    column: sqlalchemy.ColumnElement[Any] = sqlalchemy.column(name.removeprefix("-"))
    return column.desc() if name.startswith("-") else column


def _keys_of(table: str) -> list[CacheKey]:
    if not isinstance(table, str):
        raise UnknownTableError(
            "refresh_master_cache takes the name of a table.",
            hint='router.register(…, "cdc_tasks.refresh_master_cache", args=lambda change: [change.table])',
        )
    if table not in TABLE_TO_CACHE_KEYS:
        _load_the_sample()
    if table not in TABLE_TO_CACHE_KEYS:
        raise UnknownTableError(
            f"{table!r} is not in the master cache; these tables are: {', '.join(TABLE_TO_CACHE_KEYS)}.",
            hint=f'MasterCache.register("{table}", key="master:{table}")',
        )
    return TABLE_TO_CACHE_KEYS[table]


def _table_of(name: str) -> tuple[str, str]:
    """Return the key that a reader passes, and its table."""
    wanted = (f"master:{name}", name)
    if (found := _find(wanted)) is None:
        _load_the_sample()
        found = _find(wanted)
    if found is None:
        known = ", ".join(name for keys in TABLE_TO_CACHE_KEYS.values() for name in _names(keys))
        raise UnknownTableError(f"The master cache has no key {wanted[0]!r}; its keys are: {known}.")
    return found


def _find(wanted: Sequence[str]) -> tuple[str, str] | None:
    tables = {key: table for table, keys in TABLE_TO_CACHE_KEYS.items() for key in _names(keys)}
    return next(((key, tables[key]) for key in wanted if key in tables), None)


def _load_the_sample() -> None:
    """Register the help desk's tables, in a process without its own app."""
    if current_app.main in _SHIPPED:
        import_module("cdc_tasks.celery").load_master_tables()


_SHIPPED: Final = frozenset(
    {"default", "cdc_tasks"}
)  # the app that Celery creates if there is none, and ours


def _begun_key(table: str) -> str:
    return f"cdc:master-cache:{table}:begun"


def _fresh_key(key: CacheKey, attempt: _Attempt) -> str:
    return f"cdc:master-cache:fresh:{key.name}:{attempt.ticket}"


# --- Writing rows to Redis -------------------------------------------------------------------

_PIECE = 1 << 20  # bytes


class JsonArray:
    """A JSON array, written to a key of Redis in pieces; complete after `close`."""

    def __init__(self, key: str, *, ttl: int) -> None:
        """`ttl`: seconds until the key expires, unless it is renamed before."""
        self._key = key
        self._ttl = ttl
        self._pending = bytearray(b"[")
        self._offset = 0  # of the next piece: a piece that is sent twice is written to the same offset
        self.length = 0  # rows

    def append(self, row: dict[str, Any]) -> None:
        if self.length:
            self._pending += b","
        self.length += 1
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
    """Return the row as JSON with values as in a change: numeric as text, times as ISO 8601 in UTC, bytes as base64."""
    try:
        return orjson.dumps(row, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits in a JSON column
        return json.dumps(row, default=_plain, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    return str(value)
