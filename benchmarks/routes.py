"""The listener's routes during the benchmarks."""

from __future__ import annotations

from listener.router import BinlogRouter, EventType, became, changed

__all__ = [
    "by_assignee",
    "by_author",
    "by_id",
    "by_status",
    "coalesced",
    "every_row",
    "every_ticket",
    "in_batches",
    "of_a_shop",
    "two_queues",
    "with_a_failing_key",
]

QUEUE = "cdc_bulk"
OTHER_QUEUE = "cdc_cache"
KEYS = 50  # of `with_a_failing_key`
TABLES = ("narrow", "tickets", "wide")


def every_row() -> BinlogRouter:
    """Return a route with a predicate and one task for each new row, and a route that never fires."""
    return _every_row_of(*TABLES)


def every_ticket() -> BinlogRouter:
    """Return the same routes for one table."""
    return _every_row_of("tickets")


def in_batches() -> BinlogRouter:
    """Return a route with one task for 500 new rows."""
    router = BinlogRouter()
    router.register("public", "tickets", EventType.INSERT, "bench.rows", batch=500, queue=QUEUE)
    return router


def coalesced() -> BinlogRouter:
    """Return a route that coalesces all updates of the table."""
    router = BinlogRouter()
    router.register(
        "public",
        "tickets",
        EventType.UPDATE,
        "bench.refresh",
        args=lambda change: [change.table],
        columns=["id"],
        coalesce=True,
        queue=QUEUE,
    )
    return router


def of_a_shop() -> BinlogRouter:
    """Return a route to a task of the app `tests.support.tasks.shop`."""
    router = BinlogRouter()
    router.register("public", "tickets", EventType.INSERT, "shop.notes", args=["title"])
    return router


def by_status() -> BinlogRouter:
    """Return the route of `every_ticket` with a key; in `benchmarks.keys` all rows have one status."""
    return _by("status")


def by_assignee() -> BinlogRouter:
    """Return the same with ten keys."""
    return _by("assigned_to_id")


def by_author() -> BinlogRouter:
    """Return the same with a thousand keys."""
    return _by("created_by")


def by_id() -> BinlogRouter:
    """Return the same with a key for each row."""
    return _by("id")


def two_queues() -> BinlogRouter:
    """Return two routes for each new row, to two queues. One of them may be full without stopping the other."""
    router = BinlogRouter()
    router.register("public", "tickets", EventType.INSERT, "bench.row", queue=QUEUE)
    router.register(
        "public", "tickets", EventType.INSERT, "bench.other", queue=OTHER_QUEUE, on_full="set_aside"
    )
    return router


def with_a_failing_key() -> BinlogRouter:
    """Return a route with fifty keys to a task that fails for one of them."""
    router = BinlogRouter()
    router.register(
        "public",
        "tickets",
        EventType.INSERT,
        "bench.row_of_key",
        key=lambda change: change.row["id"] % KEYS,
        queue=QUEUE,
    )
    return router


def _by(column: str) -> BinlogRouter:
    router = BinlogRouter()
    router.register(
        "public", "tickets", EventType.INSERT, "bench.row", when=changed("id"), queue=QUEUE, key=column
    )
    return router


def _every_row_of(*tables: str) -> BinlogRouter:
    router = BinlogRouter()
    for table in tables:
        router.register("public", table, EventType.INSERT, "bench.row", when=changed("id"), queue=QUEUE)
    router.register("public", "tickets", EventType.UPDATE, "bench.closed", when=became("status", "closed"))
    return router
