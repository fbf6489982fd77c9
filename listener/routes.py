"""The routes, for you to edit: which change fires which task.

Copy it into your own code and point CDC_ROUTES to it, or change it here. `python -m listener routes` prints the
routes, `python -m listener check` compares them with the database.
"""

from __future__ import annotations

from listener.router import BinlogRouter, EventType, changed

__all__ = ["MASTER_TABLES", "setup_router"]

MASTER_TABLES = ("roles", "departments", "priorities", "statuses")


def setup_router(schema: str = "public") -> BinlogRouter:
    """Return the routes of the help desk.

    The listener passes `schema` to a parameter of that name: `public` on PostgreSQL, on MySQL and MariaDB the
    database that DATABASE_URL names.
    """
    router = BinlogRouter()
    # One key for both: a ticket's messages are sent in the order of its changes, even if the first task is retried.
    router.register(
        schema,
        "tickets",
        [EventType.INSERT],
        "cdc_tasks.notify_ticket_insert",
        columns=["id"],
        key="id",
        group="tickets",
    )
    router.register(
        schema,
        "tickets",
        [EventType.UPDATE],
        "cdc_tasks.notify_ticket_update",
        when=changed("assigned_to_id", "status", "priority"),
        columns=["id", "assigned_to_id", "status", "priority"],
        key="id",
        group="tickets",
    )
    router.register(schema, "users", [EventType.INSERT], "cdc_tasks.welcome_user", columns=["id"])
    for table in MASTER_TABLES:
        router.register(
            schema,
            table,
            EventType.ALL,
            "cdc_tasks.refresh_master_cache",
            args=lambda change: [change.table],
            columns=["id"],
            coalesce=True,
        )
    return router
