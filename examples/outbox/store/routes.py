"""Which tasks a transaction may enqueue."""

from cdc_tasks import BinlogRouter


def setup_router() -> BinlogRouter:
    router = BinlogRouter()
    router.accept("store.tasks.post_event")
    return router
