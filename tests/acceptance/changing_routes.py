"""The routes that the listener has while tables change: names, and globs for tables and schemas to come."""

from __future__ import annotations

from listener.router import BinlogRouter, EventType

__all__ = ["WATCHED", "setup_router"]

WATCHED = [
    ("public", "orders"),
    ("public", "called_*"),
    ("public", "parts"),
    ("public", "tenant_*"),
    ("shop_*", "items"),
]


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    for schema, table in WATCHED:
        router.register(
            schema,
            table,
            [EventType.INSERT, EventType.UPDATE, EventType.DELETE],
            "changing.row",
            columns=["id", "mark", "note"] if table == "orders" else None,
            queue="cdc_bulk",
        )
    return router
