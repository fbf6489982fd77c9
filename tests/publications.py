"""A publication as the routes ask for it, and what it holds then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc_tasks.changes import EventType
from listener.postgres.preparation import prepare_publication
from listener.postgres.publication import read_publication
from listener.router import BinlogRouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from listener.postgres.connection import Connection

__all__ = ["DELETE", "INSERT", "UPDATE", "events_of", "listed", "prepare", "published", "router_of"]

INSERT, UPDATE, DELETE = EventType.INSERT, EventType.UPDATE, EventType.DELETE


def router_of(*routes: Callable[[BinlogRouter], object]) -> BinlogRouter:
    router = BinlogRouter()
    for add in routes:
        add(router)
    return router


def prepare(connection: Connection, router: BinlogRouter) -> None:
    prepare_publication(connection, "ours", router.routes)


def published(connection: Connection) -> dict[str, set[str] | None]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return {
        table: None if columns is None else set(columns) for (_, table), columns in publication.tables.items()
    }


def listed(connection: Connection, *columns: str) -> set[str] | None:
    """Return what is published of a table where only these columns are wanted: before version 15, all of it."""
    return set(columns) if connection.info.server_version >= 15_00_00 else None


def events_of(connection: Connection) -> set[EventType]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return set(publication.events)
