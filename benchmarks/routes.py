"""The routes that the listener has while it is measured."""

from __future__ import annotations

from listener.router import BinlogRouter, EventType, became, changed

__all__ = ["coalesced", "every_row", "every_ticket", "in_batches"]

QUEUE = "cdc_bulk"
TABLES = ("narrow", "tickets", "wide")


def every_row() -> BinlogRouter:
    """One task for each new row, past a predicate; and a route that never fires."""
    return _every_row_of(*TABLES)


def every_ticket() -> BinlogRouter:
    """Do the same where there is but one table."""
    return _every_row_of("tickets")


def in_batches() -> BinlogRouter:
    """One task for 500 new rows."""
    router = BinlogRouter()
    router.register("public", "tickets", EventType.INSERT, "bench.rows", batch=500, queue=QUEUE)
    return router


def coalesced() -> BinlogRouter:
    """One task for all that changes in the table, and none more for a while."""
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


def _every_row_of(*tables: str) -> BinlogRouter:
    router = BinlogRouter()
    for table in tables:
        router.register("public", table, EventType.INSERT, "bench.row", when=changed("id"), queue=QUEUE)
    router.register("public", "tickets", EventType.UPDATE, "bench.closed", when=became("status", "closed"))
    return router
