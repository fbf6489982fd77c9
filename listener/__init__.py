"""The daemon that turns the database's log into Celery tasks.

Public are the names below, for files of routes, and the command line: `python -m listener --help`.
"""

from __future__ import annotations

from listener.router import BinlogRouter, EventType, Route, RouteError, became, changed

__all__ = ["BinlogRouter", "EventType", "Route", "RouteError", "became", "changed"]
