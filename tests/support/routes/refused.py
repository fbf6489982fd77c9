"""Routes to one task, for messages that a broker refuses."""

from __future__ import annotations

from cdc_tasks.changes import EventType
from listener.router import BinlogRouter

__all__ = ["batched", "by_old_name", "setup", "to_celery"]


def setup() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="cdc_bulk")
    return router


def by_old_name() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="bulk")
    return router


def to_celery() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="celery")
    return router


def batched() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="cdc_bulk", batch=50)
    return router
