"""Routes to one task, for messages that are too large for their broker."""

from __future__ import annotations

from cdc_tasks.changes import EventType
from listener.router import BinlogRouter

__all__ = ["batched", "setup"]


def setup() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="bulk")
    return router


def batched() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="bulk", batch=50)
    return router
