"""Which tables the routes watch: names without wildcards are looked up, and only globs are tried one by one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from cdc_tasks.routing.router import Route

__all__ = ["Watched", "watched_by"]

_WILDCARDS: Final = frozenset("*?[")


class Watched:
    """All that some routes watch."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._names = {(route.schema, route.table) for route in routes if not _is_glob(route)}
        self._globs = [route for route in routes if _is_glob(route)]

    def covers(self, schema: str, table: str) -> bool:
        return (schema, table) in self._names or any(route.matches(schema, table) for route in self._globs)


def watched_by(route: Route, tables: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of the tables, by schema and name, that the route watches."""
    if _is_glob(route):
        return [name for name in tables if route.matches(*name)]
    name = route.schema, route.table
    return [name] if name in tables else []


def _is_glob(route: Route) -> bool:
    return not _WILDCARDS.isdisjoint(route.schema + route.table)
