"""The findings of `check` in PostgreSQL, for a test's own routes."""

from __future__ import annotations

from typing import Any

from cdc_tasks.changes import EventType
from listener.core.findings import Finding, State
from listener.postgres.check import Requirements, check_postgres
from listener.router import BinlogRouter

__all__ = ["DELETE", "INSERT", "OK", "PROBLEM", "UPDATE", "WARNING", "Findings", "router_to"]

OK, WARNING, PROBLEM = State.OK, State.WARNING, State.PROBLEM
INSERT, UPDATE, DELETE = EventType.INSERT, EventType.UPDATE, EventType.DELETE


class Findings:
    """The findings, by what was checked."""

    def __init__(
        self, url: str, router: BinlogRouter | None = None, *, name: str = "ours", **wanted: Any
    ) -> None:
        defaults = {"plugin": "pgoutput", "failover": False, "lag_alarm": 10**9, "saved": None}
        routes = (router or BinlogRouter()).routes
        self.all = list(
            check_postgres(
                url, Requirements(slot=name, publication=name, routes=routes, **{**defaults, **wanted})
            )
        )

    @property
    def problems(self) -> list[str]:
        return [each.what for each in self.all if each.state is PROBLEM]

    def __getitem__(self, what: str) -> Finding:
        (found,) = [each for each in self.all if each.what == what]
        return found

    def about(self, words: str) -> Finding:
        """Return the finding that contains these words."""
        (found,) = [each for each in self.all if words in each.found]
        return found


def router_to(*registrations: tuple[Any, ...], **options: Any) -> BinlogRouter:
    router = BinlogRouter()
    for table, events, *columns in registrations:
        router.register("public", table, events, f"tasks.{table}", columns=columns or None, **options)
    return router
