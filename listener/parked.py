"""Changes whose route's `when` or `args` raised: kept in Redis until a person replays or drops them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import redis
import structlog

from cdc_tasks.changes import RowChange
from listener.router import BinlogRouter, Parked, Route, RouteError

__all__ = ["ParkedChange", "parked_key", "parse_parked", "read_parked", "say_parked", "store_parked"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedChange:
    """One change that one route could not take."""

    id: str  # of the task that it would have become
    task: str
    route: str  # the route's key
    error: str  # the exception's type and message
    parked_at: datetime
    change: RowChange

    def find_route(self, router: BinlogRouter) -> Route:
        """Return the route that failed, as it is registered now; raises RouteError where it is gone."""
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


def store_parked(key: str, parked: Iterable[Parked]) -> list[tuple[str | bytes, ...]]:
    """Return the Redis commands that store them; they are run together with the checkpoint's."""
    now = datetime.now(UTC).isoformat()
    fields: list[str | bytes] = []
    for route, change, error in parked:
        record = {
            "task": route.task,
            "route": route.key,
            # Some have half of a surrogate pair in their text, which is not UTF-8.
            "error": f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode(),
            "parked_at": now,
            "change": orjson.Fragment(change.to_json()),
        }
        fields += [f"{change.id}-{route.key}", orjson.dumps(record)]
    return [("HSET", key, *fields)] if fields else []


def say_parked(parked: Iterable[Parked]) -> None:
    """Log them, without the error's text: there may be a row's values in it."""
    for route, change, error in parked:
        log.error(
            "parked",
            task=route.task,
            position=change.position,
            error=type(error).__name__,
            hint="python -m listener parked list",
        )


def read_parked(client: redis.Redis, key: str) -> Iterator[ParkedChange]:
    """Yield what is parked, in no particular order."""
    for task_id, record in client.hscan_iter(key):
        yield parse_parked(task_id, record)


def parse_parked(task_id: bytes, record: bytes) -> ParkedChange:
    """Return what one field of the hash says."""
    fields = json.loads(record)
    return ParkedChange(
        id=task_id.decode(),
        task=fields["task"],
        route=fields["route"],
        error=fields["error"],
        parked_at=datetime.fromisoformat(fields["parked_at"]),
        change=RowChange.from_message(fields["change"]),
    )
