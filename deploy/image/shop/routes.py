"""Which changes fire which tasks."""

from __future__ import annotations

from cdc_tasks import INSERT, BinlogRouter, became

__all__ = ["setup_router"]


def setup_router(schema: str = "public") -> BinlogRouter:
    router = BinlogRouter()
    router.register(schema, "orders", INSERT, "shop.confirm", args=["id"])
    router.register(
        schema, "orders", "update", "shop.send", when=became("status", "paid"), args=["id"], key="id"
    )
    return router
