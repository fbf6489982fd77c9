"""The shipped routes, and a task that transactions may enqueue."""

from __future__ import annotations

from listener.router import BinlogRouter
from listener.routes import setup_router as setup_helpdesk

__all__ = ["setup_router"]


def setup_router(schema: str = "public") -> BinlogRouter:
    router = setup_helpdesk(schema)
    router.accept("cdc_tasks.refresh_master_cache")
    return router
