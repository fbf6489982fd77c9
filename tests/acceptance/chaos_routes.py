"""The routes that the listener has under attack; `checker.EXPECTED` says in other words what has to come of them."""

from __future__ import annotations

from listener.router import BinlogRouter, EventType, changed

__all__ = ["setup_reads", "setup_router"]


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "accounts", EventType.ALL, "chaos.accounts", queue="cdc_bulk")
    router.register("public", "events", EventType.ALL, "chaos.events", queue="cdc_bulk")
    router.register(
        "public",
        "accounts",
        EventType.UPDATE,
        "chaos.opened",
        when=changed("open"),
        columns=["id", "open", "version"],
        queue="cdc_notifications",
    )
    router.register("public", "events", EventType.INSERT, "chaos.new_events", batch=50, queue="celery")
    router.register(
        "public",
        "accounts",
        [EventType.INSERT, EventType.UPDATE, EventType.DELETE],
        "chaos.owner",
        args=lambda change: [change.row["owner"]],
        coalesce=True,
        queue="cdc_bulk",
    )
    router.accept("chaos.enqueued")
    return router


def setup_reads(schema: str = "public") -> BinlogRouter:
    """Return the routes for attacks on backfills."""
    router = BinlogRouter()
    router.register(schema, "kept", [EventType.ALL, EventType.READ], "chaos.kept", queue="cdc_bulk")
    return router
