"""Which changes go into the cache."""

from cdc_tasks import DELETE, INSERT, READ, UPDATE, BinlogRouter


def setup_router(schema: str = "public") -> BinlogRouter:
    router = BinlogRouter()
    router.register(
        schema,
        "products",
        [INSERT, UPDATE, DELETE, READ],  # READ: the rows that were there before, from a backfill
        "price_list.tasks.keep_product",
        columns=["id", "name", "price"],
    )
    router.refresh_master_cache(
        schema, "products"
    )  # coalesced: a thousand changes at once are a refresh or two
    return router
