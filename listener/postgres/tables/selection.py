"""The tables that the routes select, with events and columns: pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cdc_tasks.changes import EventType
from cdc_tasks.routing.router import Route, RouteIndex
from listener.postgres.tables.catalogue import Table

__all__ = ["SelectedTable", "covered_partitions", "is_glob", "needed_columns", "selected_tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedTable:
    """A table that at least one route selects."""

    table: Table
    routes: tuple[Route, ...]

    @property
    def events(self) -> frozenset[EventType]:
        """The events that any of the routes takes. A table with only READ is published too: see `backfill`."""
        events = frozenset[EventType]().union(*(route.events for route in self.routes))
        return events - {EventType.READ} or frozenset({EventType.INSERT})

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that any of the routes uses; None: all."""
        needed = [needed_columns(route) for route in self.routes]
        if any(columns is None for columns in needed):
            return None
        return frozenset[str]().union(*filter(None, needed))


def selected_tables(routes: Sequence[Route], tables: Iterable[Table]) -> tuple[SelectedTable, ...]:
    """Return the tables that the routes select; a partition only if no route selects one of its parents."""
    watching = RouteIndex(routes).watching
    candidates = {table.name: table for table in tables if table.is_publishable}
    return tuple(
        SelectedTable(table=table, routes=watching(*name))
        for name, table in candidates.items()
        if watching(*name) and not any(watching(*ancestor) for ancestor in table.ancestors)
    )


def covered_partitions(routes: Sequence[Route], tables: Iterable[Table]) -> tuple[Table, ...]:
    """Return the selected partitions whose changes come under the name of a parent that is also selected."""
    watching = RouteIndex(routes).watching
    return tuple(
        table
        for table in tables
        if table.is_publishable and any(watching(*ancestor) for ancestor in table.ancestors)
    )


def needed_columns(route: Route) -> frozenset[str] | None:
    """Return the columns that a route uses, with those of `changed(…)` and of its key; None: possibly all."""
    if route.columns is None:
        return None
    needed = frozenset(route.columns)
    for reads in (route.when, route.key):
        looked_at: tuple[str, ...] | None = () if reads is None else getattr(reads, "columns", None)
        if looked_at is None:  # a function, which may read any column
            return None
        needed = needed.union(looked_at)
    return needed


def is_glob(route: Route) -> bool:
    """Return whether the route may select tables that do not exist yet."""
    return any(character in name for name in (route.schema, route.table) for character in "*?[")
