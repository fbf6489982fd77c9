"""cdc-tasks: a committed row change becomes a finished Celery task.

The names below, and those of `cdc_tasks.testing`, `cdc_tasks.notify` and `cdc_tasks.celery`, are the public interface.
Everything else may change in any version.

Importing this package loads nothing else: each name is loaded on first use. So a file of routes needs no database
driver, and a web process that only reads the master cache loads no tasks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cdc_tasks import db, master_cache, notify
    from cdc_tasks.changes import DELETE, INSERT, READ, TRUNCATE, UPDATE, Change, EventType, RowChange
    from cdc_tasks.errors import CDCError
    from cdc_tasks.latest import latest_only, store_latest
    from cdc_tasks.master_cache import MasterCache
    from cdc_tasks.outbox.context import context
    from cdc_tasks.outbox.engine import write_context
    from cdc_tasks.outbox.enqueue import enqueue
    from cdc_tasks.outbox.muted import muted
    from cdc_tasks.retry import TryAgain
    from cdc_tasks.routing.decorators import on_change
    from cdc_tasks.routing.message_groups import key_headers
    from cdc_tasks.routing.predicates import became, changed, in_context
    from cdc_tasks.routing.router import BinlogRouter, RouteError
    from cdc_tasks.worker.install import install

__all__ = [
    "DELETE",
    "INSERT",
    "READ",
    "TRUNCATE",
    "UPDATE",
    "BinlogRouter",
    "CDCError",
    "Change",
    "EventType",
    "MasterCache",
    "RouteError",
    "RowChange",
    "TryAgain",
    "became",
    "changed",
    "context",
    "db",
    "enqueue",
    "in_context",
    "install",
    "key_headers",
    "latest_only",
    "master_cache",
    "muted",
    "notify",
    "on_change",
    "store_latest",
    "write_context",
]

_HOME: Final = {
    "DELETE": "changes",
    "INSERT": "changes",
    "READ": "changes",
    "TRUNCATE": "changes",
    "UPDATE": "changes",
    "BinlogRouter": "routing.router",
    "CDCError": "errors",
    "Change": "changes",
    "EventType": "changes",
    "MasterCache": "master_cache",
    "RouteError": "routing.router",
    "RowChange": "changes",
    "TryAgain": "retry",
    "became": "routing.predicates",
    "changed": "routing.predicates",
    "context": "outbox.context",
    "enqueue": "outbox.enqueue",
    "in_context": "routing.predicates",
    "install": "worker.install",
    "key_headers": "routing.message_groups",
    "latest_only": "latest",
    "muted": "outbox.muted",
    "on_change": "routing.decorators",
    "store_latest": "latest",
    "write_context": "outbox.engine",
}
_MODULES: Final = frozenset({"db", "master_cache", "notify"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from cdc_tasks.extras import needs_extras

        with needs_extras("helpdesk"):
            return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
