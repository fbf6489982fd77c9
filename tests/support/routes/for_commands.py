"""Users' routes, for CDC_ROUTES in tests of the commands."""

from __future__ import annotations

from cdc_tasks.changes import Change
from listener.router import BinlogRouter, EventType, changed

__all__ = ["failing", "fixed", "keyed", "no_router", "routes", "setup", "to_no_queue"]


def setup(schema: str = "public") -> BinlogRouter:
    """Return routes to the help desk's tables."""
    router = BinlogRouter()
    router.register(schema, "roles", EventType.ALL, "tests.refresh", args=_table, coalesce=True)
    router.register(
        schema, "roles", [EventType.UPDATE], "tests.renamed", when=changed("name"), columns=["id"]
    )
    router.register(schema, "roles", [EventType.INSERT], "tests.many", batch=500, queue="cdc_bulk")
    return router


def _table(change: Change) -> list[str]:
    return [change.table]


routes = setup()
no_router = {"a": "mistake"}


def to_no_queue(schema: str = "public") -> BinlogRouter:
    """Return a route whose queue is misspelt."""
    router = BinlogRouter()
    router.register(schema, "roles", EventType.INSERT, "tests.many", queue="balk")
    return router


def keyed(schema: str = "public") -> BinlogRouter:
    """Return routes with keys, and with unusual policies."""
    router = BinlogRouter()
    events = [EventType.INSERT, EventType.UPDATE]
    router.register(schema, "roles", events, "tests.of_one", key="id")
    policies = {"group": "orders", "on_failure": "hold", "on_full": "set_aside", "even_muted": True}
    router.register(schema, "roles", events, "tests.of_group", key=["tenant_id", "id"], **policies)  # type: ignore[arg-type]  # a dict of each parameter's type
    router.register(schema, "roles", events, "tests.called", key=_table, on_full="grow")
    return router


def failing(schema: str = "public") -> BinlogRouter:
    """Return a route whose function fails on unexpected rows, and one that always fails."""
    router = BinlogRouter()
    router.register(
        schema, "roles", EventType.INSERT, "tests.named", args=lambda change: [len(change.row["name"])]
    )
    router.register(
        schema, "roles", EventType.INSERT, "tests.wrong", when=lambda change: change.row["nothing"]
    )
    return router


def fixed(schema: str = "public") -> BinlogRouter:
    """Return the same routes; the first one now handles every row."""
    router = BinlogRouter()
    router.register(
        schema, "roles", EventType.INSERT, "tests.named", args=lambda change: [change.row["name"]]
    )
    return router
