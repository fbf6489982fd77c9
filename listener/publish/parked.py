"""Changes that a route or the broker could not take: kept in Redis until a person replays or drops them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import redis
import structlog

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Origin, Parked, Route, RouteError
from listener.core.change import LoggedChange

__all__ = [
    "ParkedChange",
    "UnreadableRecordError",
    "parked_key",
    "parse_parked",
    "read_parked",
    "say_parked",
    "store_parked",
]

log = structlog.get_logger()

# How many bytes of a value are kept where the whole row is too large; a key's value has up to 3 kB.
_SHORTENED = (4096, 256, 0)


class UnreadableRecordError(CDCError):
    """A record of a parked change is not one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedChange:
    """One change that one route could not take."""

    id: str  # of the task that it would have become
    task: str
    route: str  # the route's key
    error: str  # the exception's type and message
    parked_at: datetime
    change: RowChange
    logged: Mapping[str, Any] | None = None  # the row as it was logged, where it cannot be rendered
    arguments: Sequence[Any] | None = None  # of the task, where the route has batch= or coalesce=
    is_shortened: bool = False  # the whole was too large for Redis; `unavailable` names what is left out

    def find_route(self, router: BinlogRouter) -> Route:
        """Return the route that failed, as it is registered now; raises RouteError where it is gone, or the row."""
        if self.is_shortened:
            raise RouteError(
                f"The row of {self.id} was too large to be kept: only its short values are here.",
                hint="Look it up in the database by its key, and do its task's work by hand; then drop it:\n"
                f"  python -m listener parked show {self.id}\n  python -m listener parked drop {self.id}",
            )
        if self.logged is not None:
            raise RouteError(
                f"The row of {self.id} cannot be rendered.",
                hint="See it as it was logged, and do its task's work by hand; then drop it:\n"
                f"  python -m listener parked show {self.id}\n  python -m listener parked drop {self.id}",
            )
        for route in router.routes:
            if route.key == self.route:
                return route
        raise RouteError(
            f"The route of {self.id} to {self.task} is no longer registered.",
            hint=f"Register it again, or drop the change: python -m listener parked drop {self.id}",
        )


def parked_key(prefix: str) -> str:
    """Return the Redis hash that holds them, by task id."""
    return f"{prefix}:parked"


def store_parked(
    key: str, parked: Iterable[Parked], *, longest: int | None = None
) -> list[tuple[str | bytes, ...]]:
    """Return the Redis commands that store them; they are run together with the checkpoint's.

    `longest` is how many bytes Redis takes in one value: of a larger record only the short values are kept.
    """
    now = datetime.now(UTC)
    fields: list[str | bytes] = []
    for each in parked:
        fields += [f"{each.change.id}-{each.route.key}", _record(each, now, longest)]
    return [("HSET", key, *fields)] if fields else []


def _record(parked: Parked, now: datetime, longest: int | None) -> bytes:
    head = {
        "task": parked.route.task,
        "route": parked.route.key,
        "error": _described(parked.error),
        "parked_at": now.isoformat(),
    }
    record = orjson.dumps({**head, **_recorded(parked, now)})
    if longest is None or len(record) <= longest:
        return record
    for most in _SHORTENED:
        record = orjson.dumps({**head, "change": _shortened(parked.change, now, most), "is_shortened": True})
        if len(record) <= longest:
            break
    return record


def _recorded(parked: Parked, now: datetime) -> dict[str, Any]:
    """Return the change as a task would get it, or else without its row, and beside it what else there is."""
    change = parked.change
    if isinstance(change, Origin):
        arguments = orjson.Fragment(b"[%b]" % (parked.sealed or b""))
        return {"change": _rowless(change, now).to_message(), "arguments": arguments}
    try:
        rendered = change.to_json()
        json.loads(rendered)
    except Exception as error:  # noqa: BLE001 - whatever the reason: the change is kept
        rowless = _rowless(change, change.committed_at)
        return {"change": rowless.to_message(), "logged": {"error": _described(error), **_logged(change)}}
    return {"change": orjson.Fragment(rendered)}


def _rowless(change: Change | Origin, committed_at: datetime) -> RowChange:
    schema, table, event = change.kind
    return RowChange(
        id=change.id,
        schema=schema,
        table=table,
        event=EventType(event),
        before=None,
        after=None,
        position=change.position,
        committed_at=committed_at,
    )


def _shortened(change: Change | Origin, now: datetime, most: int) -> dict[str, Any]:
    """Return the change with the values that have up to `most` bytes; the others are named as unavailable."""
    if isinstance(change, Origin):
        return _rowless(change, now).to_message()
    try:
        message = json.loads(change.to_json())
    except Exception:  # noqa: BLE001 - whatever the reason: the place of the change is kept
        return _rowless(change, change.committed_at).to_message()
    left_out = dict.fromkeys(message["unavailable"])
    for rows in ("before", "after"):
        row = message[rows] or {}
        short = {name: value for name, value in row.items() if len(json.dumps(value)) <= most}
        left_out |= dict.fromkeys(row.keys() - short.keys())
        message[rows] = short if message[rows] is not None else None
    return {**message, "unavailable": list(left_out) if most else []}


def _logged(change: Change) -> dict[str, Any]:
    return change.logged() if isinstance(change, LoggedChange) else {}


def _described(error: Exception) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the words of a user's exception are a user's code
        text = type(error).__name__
    return text.encode(
        errors="backslashreplace"
    ).decode()  # some have half of a surrogate pair, which is no UTF-8


def say_parked(parked: Iterable[Parked]) -> None:
    """Log them, without the error's text: there may be a row's values in it."""
    for each in parked:
        log.error(
            "parked",
            task=each.route.task,
            position=each.change.position,
            error=type(each.error).__name__,
            hint="python -m listener parked list",
        )


def read_parked(client: redis.Redis, key: str) -> Iterator[ParkedChange]:
    """Yield what is parked, in no particular order."""
    for task_id, record in client.hscan_iter(key):
        yield parse_parked(key, task_id, record)


def parse_parked(key: str, task_id: bytes, record: bytes) -> ParkedChange:
    """Return what one field of the hash `key` says; raises UnreadableRecordError."""
    try:
        return _parse(task_id, json.loads(record))
    except (LookupError, TypeError, ValueError) as error:
        name = task_id.decode(errors="backslashreplace")
        raise UnreadableRecordError(
            f"What is parked as {name} in {key} cannot be read: {type(error).__name__}.",
            hint=f"See it: redis-cli HGET {key} {name}\nTo throw it away: redis-cli HDEL {key} {name}",
        ) from error


def _parse(task_id: bytes, fields: Mapping[str, Any]) -> ParkedChange:
    return ParkedChange(
        id=task_id.decode(),
        task=fields["task"],
        route=fields["route"],
        error=fields["error"],
        parked_at=datetime.fromisoformat(fields["parked_at"]),
        change=RowChange.from_message(fields["change"]),
        logged=fields.get("logged"),
        arguments=fields.get("arguments"),
        is_shortened=fields.get("is_shortened", False),
    )
