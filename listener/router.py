"""The router under its documented name: `from cdc_tasks.routing.router import BinlogRouter, EventType`."""

from __future__ import annotations

from cdc_tasks.routing.router import (
    BinlogRouter,
    Call,
    EventType,
    Origin,
    Parked,
    Route,
    RouteError,
    RouteIndex,
    became,
    changed,
)

__all__ = [
    "BinlogRouter",
    "Call",
    "EventType",
    "Origin",
    "Parked",
    "Route",
    "RouteError",
    "RouteIndex",
    "became",
    "changed",
]
