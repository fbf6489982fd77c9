"""Routes that each fail in their own way: a task that gives up and holds its key, and code that fails on a row."""

from __future__ import annotations

from cdc_tasks.changes import Change, EventType
from listener.router import BinlogRouter

__all__ = ["failing"]


def failing() -> BinlogRouter:
    router = BinlogRouter()
    router.register(
        "public",
        "notes",
        EventType.INSERT,
        "in_order.breaks",
        args=lambda change: [change.after["author"], change.after["id"]],
        key="author",
        on_failure="hold",
    )
    router.register("public", "notes", EventType.INSERT, "in_order.notes", args=_lacks_a_column)
    return router


def _lacks_a_column(change: Change) -> list[object]:
    return [change.row["no_such_column"]]
