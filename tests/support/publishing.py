"""Code that the tests of the publishers share: Celery apps, changes that fire, and the messages in Redis."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import Celery

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.routing.router import BinlogRouter, Call, Parked
from listener.publish.redis.publisher import RedisPublisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future

    import redis

__all__ = [
    "SOURCE",
    "celery_app",
    "change",
    "changes",
    "fire",
    "ids",
    "in_background",
    "messages",
    "pop_times",
    "position",
    "redis_publisher",
    "router_to",
    "waits",
]

SOURCE = "7f00"


def celery_app(url: str, **settings: Any) -> Celery:
    """Return an app like the listener's: with settings, without tasks."""
    app = Celery("listener", broker=url, set_as_current=False)
    app.conf.update(task_create_missing_queues=True, **settings)
    return app


def position(number: int) -> str:
    return f"0/{number:X}:0"


def change(number: int, *, table: str = "tickets", **row: Any) -> RowChange:
    """Return an insert, the only change of the transaction `number`."""
    return RowChange(
        id=f"{SOURCE}-{number:X}-0",
        schema="public",
        table=table,
        event=EventType.INSERT,
        before=None,
        after={"id": number, **row},
        position=position(number),
        committed_at=datetime(2026, 11, 22, 10, 0, 0, number % 1_000_000, tzinfo=UTC),
    )


def changes(first: int, last: int, **options: Any) -> list[RowChange]:
    return [change(number, **options) for number in range(first, last + 1)]


def router_to(
    task: str = "tests.task", *, table: str = "tickets", events: Any = EventType.ALL, **options: Any
) -> BinlogRouter:
    """Return a router with one route, for every change of `table`."""
    router = BinlogRouter()
    router.register("public", table, events, task, **options)
    return router


def fire(router: BinlogRouter, fired_by: Iterable[RowChange]) -> list[Call | Parked]:
    return list(router.tasks_for(fired_by))


@contextmanager
def in_background(action: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run it in a separate thread, and wait for it at the end of the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def waits(logs: Iterable[Mapping[str, Any]], why: str = "") -> bool:
    """Return whether a log line shows that the publisher waits, for this reason."""
    return any(why in str(line.get("error")) for line in logs if line["event"] == "waiting")


def messages(client: redis.Redis, key: str) -> list[dict[str, Any]]:
    """Return the messages of a queue, next one first, each with its body decoded."""
    found = [json.loads(text) for text in reversed(client.lrange(key, 0, -1))]
    for message in found:
        message["body"] = json.loads(base64.b64decode(message["body"]))
    return found


def pop_times(headers: dict[str, Any]) -> list[tuple[datetime, timedelta | None]]:
    """Remove a message's times from its headers; return when it is due and when it expires, with zone offsets."""
    found = [headers.pop(name) for name in ("eta", "expires")]
    times = [datetime.fromisoformat(each) for each in found if each is not None]
    return [(each, each.utcoffset()) for each in times]


def ids(client: redis.Redis, key: str) -> list[int]:
    """Return the row ids of the messages in a queue, next one first."""
    return [message["body"][0][0]["after"]["id"] for message in messages(client, key)]


@contextmanager
def redis_publisher(
    url: str,
    *,
    name: str = "test",
    durability: str = "memory",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[RedisPublisher]:
    """Open a publisher as the loop does, with its checkpoint read."""
    publisher = RedisPublisher(
        celery_app(url, **settings), name=name, durability=durability, **(options or {})
    )
    try:
        publisher.attach(SOURCE)
        yield publisher
    finally:
        publisher.close()
