"""Routes that do not stand on a task."""

from cdc_tasks import BinlogRouter


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    router.accept("orders_api.*")  # transactions may enqueue these tasks
    return router
