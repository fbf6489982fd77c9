"""The daemon that turns the database log into Celery tasks.

Public API: the names below, for files of routes, and the command line: `python -m listener --help`.

Importing this package loads nothing: each name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from listener.router import BinlogRouter, EventType, Route, RouteError, became, changed

__all__ = ["BinlogRouter", "EventType", "Route", "RouteError", "became", "changed"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("listener.router"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
