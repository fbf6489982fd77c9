"""A user's routes and tasks that run with every version: what an upgrade is rehearsed with.

They are imported from a directory of their own, by an old version as by this one: nothing else of the tests is there.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import shared_task

from listener.router import BinlogRouter, EventType
from listener.routes import setup_router as setup_desk

__all__ = ["bill", "index", "note", "setup_router"]

NOTED = "shop:noted"  # a list: what the tasks did, in their order
BROKEN = "shop:broken"  # while it is there, `shop.bill` fails
EACH_RETRIED, EACH_BILLED, EACH_PARKED = 7, 50, 40  # orders whose number can be divided by it


def setup_router(schema: str = "public") -> BinlogRouter:
    router = setup_desk(schema)
    router.register(schema, "orders", EventType.ALL, "shop.note", args=_named, queue="bulk")
    router.register(schema, "orders", [EventType.INSERT], "shop.index", batch=25, queue="cache")
    router.register(
        schema, "orders", [EventType.INSERT], "shop.bill", when=_is_billed, args=_named, queue="bulk"
    )
    router.register(
        schema, "orders", [EventType.INSERT], "shop.note", when=_is_odd, args=_failing, queue="bulk"
    )
    return router


def _named(change: Any) -> list[Any]:
    return [change.event.value, int(change.row["id"]), int(change.row["version"])]


def _is_billed(change: Any) -> bool:
    return int(change.row["id"]) % EACH_BILLED == 0


def _is_odd(change: Any) -> bool:
    return int(change.row["id"]) % EACH_PARKED == 0


def _failing(change: Any) -> list[Any]:
    if "SHOP_BROKEN" in os.environ:
        raise ValueError("a mistake in the routes")
    return ["parked", *_named(change)[1:]]


@shared_task(name="shop.note", bind=True)
def note(task: Any, event: str, order: int, version: int) -> None:
    if order % EACH_RETRIED == 0 and not task.request.retries:
        raise task.retry(countdown=2)
    _note(f"{event} {order} {version}")


@shared_task(name="shop.index")
def index(changes: list[dict[str, Any]]) -> None:
    for change in changes:
        _note(f"index {change['after']['id']} {change['after']['version']}")


@shared_task(name="shop.bill")
def bill(event: str, order: int, version: int) -> None:
    with _redis() as client:
        if client.exists(BROKEN):
            raise ValueError("the bank says no")
    _note(f"bill {order} {version}")


def _note(what: str) -> None:
    with _redis() as client:
        client.rpush(NOTED, what)


def _redis() -> redis.Redis:
    return redis.Redis.from_url(os.environ["SHOP_REDIS"])
