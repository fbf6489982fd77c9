"""A publication as the routes require it, and its contents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc_tasks.changes import EventType
from listener.postgres.tables.checkpoint_notes import Notes
from listener.postgres.tables.publication import read_publication
from listener.postgres.tables.sync import TableSync
from listener.router import BinlogRouter, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from listener.postgres.client.connection import Connection

__all__ = [
    "DELETE",
    "INSERT",
    "UPDATE",
    "events_of",
    "listed",
    "prepare",
    "prepare_publication",
    "published",
    "router_of",
]

INSERT, UPDATE, DELETE = EventType.INSERT, EventType.UPDATE, EventType.DELETE


def router_of(*routes: Callable[[BinlogRouter], object]) -> BinlogRouter:
    router = BinlogRouter()
    for add in routes:
        add(router)
    return router


def prepare(connection: Connection, router: BinlogRouter, *, column_lists: bool = True) -> None:
    """Create the publication `ours`, with column lists (the harder case) unless `column_lists` is False."""
    prepare_publication(connection, "ours", router.routes, column_lists=column_lists)


def prepare_publication(
    connection: Connection, name: str, routes: Sequence[Route], *, column_lists: bool = False
) -> None:
    """Create a publication as a first start does."""
    sync = TableSync(publication=name, routes=routes, column_lists=column_lists)
    sync.prepare(connection, Notes())


def published(connection: Connection) -> dict[str, set[str] | None]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return {
        table: None if columns is None else set(columns) for (_, table), columns in publication.tables.items()
    }


def listed(connection: Connection, *columns: str) -> set[str] | None:
    """Return the columns that are published if only these are wanted: before version 15, all."""
    return set(columns) if connection.info.server_version >= 15_00_00 else None


def events_of(connection: Connection) -> set[EventType]:
    publication = read_publication(connection, "ours")
    assert publication is not None
    return set(publication.events)
