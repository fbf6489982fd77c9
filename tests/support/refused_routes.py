"""Routes to one task, for what a broker refuses."""

from __future__ import annotations

from cdc_tasks.changes import EventType
from listener.router import BinlogRouter

__all__ = ["batched", "setup", "to_celery"]


def setup() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="bulk")
    return router


def to_celery() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="celery")
    return router


def batched() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="bulk", batch=50)
    return router
