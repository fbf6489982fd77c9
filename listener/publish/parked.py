"""Changes that a route or the broker refused: kept in Redis until a person replays or drops them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import redis
import structlog

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.environment import shown_context
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import EnqueuedTask, TaskNotAcceptedError, check_accepted, prefix_of
from cdc_tasks.routing.router import (
    BinlogRouter,
    Call,
    Origin,
    Parked,
    Route,
    RouteError,
    enqueued_route,
    task_id,
)
from listener.core.logged_change import LoggedChange
from listener.publish.task_message import EnvelopeError

__all__ = [
    "ParkedChange",
    "UnreadableRecordError",
    "log_parked",
    "parked_key",
    "parse_parked",
    "read_parked",
    "store_parked",
    "without_unfit",
]

log = structlog.get_logger()

# Bytes kept of each value if the whole row is too large; the value of a key has up to 3 kB.
_SHORTENED = (4096, 256, 0)


class UnreadableRecordError(CDCError):
    """The record of a parked change has an unknown format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedChange:
    """One change that one route refused."""

    id: str  # of the task that it should have fired
    task: str
    route: str  # the route's id
    error: str  # the exception's type and message
    parked_at: datetime
    change: RowChange
    logged: Mapping[str, Any] | None = None  # the row as it was logged, if it cannot be rendered
    arguments: Sequence[Any] | None = None  # of the task, if the route has batch= or coalesce=
    kwargs: Mapping[str, Any] | None = None  # the same: its keyword arguments, if it has any
    key: str | None = None  # the same: of its message group
    is_shortened: bool = (
        False  # the whole row was too large for Redis; `unavailable` names the omitted columns
    )

    def shown_change(self) -> dict[str, Any]:
        """Return the change as in a message, with the values of its context that may be shown."""
        message = self.change.to_message()
        shown = shown_context(message.pop("context", None))
        return {**message, "context": shown} if shown else message

    def find_route(self, router: BinlogRouter) -> Route:
        """Return the failed route as it is registered now. Raise RouteError if route or row is missing."""
        if self.is_shortened:
            raise RouteError(
                f"The row of {self.id} was too large to be kept: only its short values are stored.",
                hint="Look it up in the database by its key, and do the task's work by hand. Then drop it:\n"
                f"  python -m listener parked show {self.id}\n  python -m listener parked drop {self.id}",
                code="row_too_large",
            )
        is_enqueued = self.change.event is EventType.ENQUEUED
        if self.logged is not None and is_enqueued:
            raise RouteError(
                f"The record {self.id} that a transaction enqueued is not a valid task.",
                hint=f"See its content, and drop it:\n  python -m listener parked show {self.id}\n"
                f"  python -m listener parked drop {self.id}",
                code="no_task",
            )
        if self.logged is not None:
            raise RouteError(
                f"The row of {self.id} cannot be rendered.",
                hint="See it as it was logged, and do the task's work by hand. Then drop it:\n"
                f"  python -m listener parked show {self.id}\n  python -m listener parked drop {self.id}",
                code="row_not_rendered",
            )
        if is_enqueued:
            return self._enqueued(router)
        for route in router.routes:
            if route.id == self.route:
                return route
        raise RouteError(
            f"The route of {self.id} to {self.task} is no longer registered.",
            hint=f"Register it again, or drop the change: python -m listener parked drop {self.id}",
            code="route_gone",
        )

    def _enqueued(self, router: BinlogRouter) -> Route:
        route = enqueued_route(self.change.kind)
        try:
            check_accepted(self.task, prefix_of(self.change.kind), router.accepted)
        except TaskNotAcceptedError as error:
            raise RouteError(error.message, hint=error.hint, code=error.code) from error
        return route


def parked_key(prefix: str) -> str:
    """Return the key of the Redis hash that holds them, by task id."""
    return f"{prefix}:parked"


def store_parked(
    key: str, parked: Iterable[Parked], *, max_bytes: int | None = None
) -> list[tuple[str | bytes, ...]]:
    """Return the Redis commands that store them; they run together with the checkpoint's.

    `max_bytes` is the limit of Redis for one value: of a larger record only the short values are kept.
    """
    now = datetime.now(UTC)
    fields: list[str | bytes] = []
    for each in parked:
        fields += [task_id(each.change.id, each.route), _record(each, now, max_bytes)]
    return [("HSET", key, *fields)] if fields else []


def _record(parked: Parked, now: datetime, max_bytes: int | None) -> bytes:
    head = {
        "task": parked.route.task,
        "route": parked.route.id,
        "error": _described(parked.error),
        "parked_at": now.isoformat(),
    }
    record = orjson.dumps({**head, **_recorded(parked, now)})
    if max_bytes is None or len(record) <= max_bytes:
        return record
    for most in _SHORTENED:
        record = orjson.dumps({**head, "change": _shortened(parked.change, now, most), "is_shortened": True})
        if len(record) <= max_bytes:
            break
    return record


def _recorded(parked: Parked, now: datetime) -> dict[str, Any]:
    """Return the change as a task would get it. If that fails, return it without its row, with all other data."""
    change = parked.change
    if isinstance(change, EnqueuedTask):
        found = {"change": _rowless(change, change.committed_at).to_message()}
        if change.error is not None:
            return {**found, "logged": {"error": _described(change.error), **change.logged()}}
        return found | _called(change.arguments, change.kwargs, change.key)
    if isinstance(change, Origin):
        found = {"change": _rowless(change, now).to_message()}
        return found | _called(parked.rendered or b"", parked.rendered_kwargs, parked.key)
    try:
        rendered = change.to_json()
        json.loads(rendered)
    except Exception as error:  # noqa: BLE001 - for any reason: the change is kept
        rowless = _rowless(change, change.committed_at)
        return {"change": rowless.to_message(), "logged": {"error": _described(error), **_logged(change)}}
    is_last = {"is_last": True} if change.transaction.is_last else {}
    return {"change": orjson.Fragment(rendered), **is_last}


def _called(arguments: bytes, kwargs: bytes, key: str | None) -> dict[str, Any]:
    """Return the known parts of a call: its arguments, and its key if it has one."""
    found: dict[str, Any] = {"arguments": orjson.Fragment(b"[%b]" % arguments)}
    if kwargs:
        found["kwargs"] = orjson.Fragment(b"{%b}" % kwargs)
    return found if key is None else {**found, "key": key}


def _rowless(change: Change | Origin | EnqueuedTask, committed_at: datetime) -> RowChange:
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
        context=None if (context := change.commit.context) is None else context.values,
    )


def _shortened(change: Change | Origin | EnqueuedTask, now: datetime, most: int) -> dict[str, Any]:
    """Return the change with the values that have up to `most` bytes; `unavailable` names the others."""
    if isinstance(change, Origin | EnqueuedTask):
        return _rowless(change, now).to_message()
    try:
        message = json.loads(change.to_json())
    except Exception:  # noqa: BLE001 - for any reason: the position of the change is kept
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
    except Exception:  # noqa: BLE001 - the text of a user's exception is a user's code
        text = type(error).__name__
    return text.encode(errors="backslashreplace").decode()  # half of a surrogate pair is not UTF-8


def without_unfit(tasks: Iterable[Call], make: Callable[[Call], object]) -> tuple[list[Call], list[Parked]]:
    """Return the tasks that can be sent, and the enqueued ones for which `make` cannot create a message.

    If a route is wrong, the listener stops. But anyone who writes to the database may name a queue that does not exist.
    """
    fit: list[Call] = []
    unfit: list[Parked] = []
    for each in tasks:
        try:
            if not each.route.id:
                make(each)
            fit.append(each)
        except EnvelopeError as error:
            unfit.append(Parked(*each[:2], error, each.arguments, each.kwargs, each.key))
    return fit, unfit


def log_parked(parked: Iterable[Parked]) -> None:
    """Log them, without the error's text: it may contain values of a row."""
    for each in parked:
        log.error(
            "parked",
            task=each.route.task,
            position=each.change.position,
            error=type(each.error).__name__,
            hint="python -m listener parked list",
        )


def read_parked(client: redis.Redis, key: str) -> Iterator[ParkedChange]:
    """Yield the parked changes, in no particular order."""
    for name, record in client.hscan_iter(key):
        yield parse_parked(key, name, record)


def parse_parked(key: str, task_id: bytes, record: bytes) -> ParkedChange:
    """Parse one field of the hash `key`. Raise UnreadableRecordError."""
    try:
        return _parse(task_id, json.loads(record))
    except (LookupError, TypeError, ValueError) as error:
        name = task_id.decode(errors="backslashreplace")
        raise UnreadableRecordError(
            f"The listener cannot read the parked change {name} in {key}: {type(error).__name__}.",
            hint=f"See it: redis-cli HGET {key} {name}\nTo drop it: redis-cli HDEL {key} {name}",
        ) from error


def _parse(task_id: bytes, fields: Mapping[str, Any]) -> ParkedChange:
    return ParkedChange(
        id=task_id.decode(),
        task=fields["task"],
        route=fields["route"],
        error=fields["error"],
        parked_at=datetime.fromisoformat(fields["parked_at"]),
        change=RowChange.from_message({**fields["change"], "is_last": fields.get("is_last", False)}),
        logged=fields.get("logged"),
        arguments=fields.get("arguments"),
        kwargs=fields.get("kwargs"),
        key=fields.get("key"),
        is_shortened=fields.get("is_shortened", False),
    )
