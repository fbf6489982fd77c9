"""The router under its documented name: `from cdc_tasks.routing.router import BinlogRouter, EventType`."""

from __future__ import annotations

from cdc_tasks.changes import EventType
from cdc_tasks.routing.predicates import became, changed
from cdc_tasks.routing.router import BinlogRouter, Route, RouteError

__all__ = ["BinlogRouter", "EventType", "Route", "RouteError", "became", "changed"]
