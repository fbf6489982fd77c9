"""cdc-tasks in a Django project: put "cdc_tasks.django" into INSTALLED_APPS.

`manage.py cdc run|check|routes|status|…` then uses the project's database, routes and Celery app (docs/django.md).
Nothing else in cdc-tasks imports this package, and it imports nothing from Django before Django is set up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdc_tasks.django.registry import accept, register

if TYPE_CHECKING:
    from cdc_tasks.django.middleware import ContextMiddleware

__all__ = ["ContextMiddleware", "accept", "register"]


def __getattr__(name: str) -> Any:
    if name == "ContextMiddleware":
        from cdc_tasks.django.middleware import ContextMiddleware

        return ContextMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
