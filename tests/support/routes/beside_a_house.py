"""Routes to a task of another team's worker, and to one of ours."""

from __future__ import annotations

from cdc_tasks.changes import EventType
from listener.router import BinlogRouter

__all__ = ["ours", "setup"]


def ours() -> BinlogRouter:
    router = BinlogRouter()
    router.register(
        "public", "roles", EventType.ALL, "cdc_tasks.refresh_master_cache", args=lambda change: [change.table]
    )
    return router


def setup() -> BinlogRouter:
    router = ours()
    router.register(
        "public", "roles", EventType.INSERT, "house.note", args=lambda change: [change.after["id"]]
    )
    return router
