"""The routes that the listener has while it is killed on MySQL and MariaDB: every change, in one queue."""

from __future__ import annotations

from listener.router import BinlogRouter, EventType

__all__ = ["setup_definitions", "setup_router"]


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    router.register("chaos", "accounts", EventType.ALL, "chaos.accounts", queue="cdc_bulk")
    router.register("chaos", "events", EventType.ALL, "chaos.events", queue="cdc_bulk")
    router.accept("chaos.enqueued")
    return router


def setup_definitions() -> BinlogRouter:
    """Return those for tables that come and go."""
    router = BinlogRouter()
    router.register("definitions", "[pq]*", EventType.ALL, "chaos.definitions", queue="cdc_bulk")
    return router
