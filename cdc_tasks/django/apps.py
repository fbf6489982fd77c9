"""`"cdc_tasks.django"` in INSTALLED_APPS."""

from __future__ import annotations

from traceback import walk_stack
from typing import Any

from django import conf
from django.apps import AppConfig
from django.core import checks

__all__ = ["CDCConfig"]

_TAG = "cdc"


class CDCConfig(AppConfig):
    """Has no models and imports nothing of the project: `manage.py cdc`, the checks and the tests load the routes."""

    name = "cdc_tasks.django"
    label = "cdc"
    verbose_name = "cdc-tasks"

    def ready(self) -> None:
        """Register the system checks. A web process runs no checks, and so loads nothing more."""
        for check in (_settings, _routes):
            checks.register(check, _TAG)
        checks.register(_migrations, _TAG, checks.Tags.database)
        if getattr(conf.settings, "CDC_CONTEXT", None):
            from cdc_tasks.django.middleware import write_context

            write_context()


def _is_within_celery() -> bool:
    """Return whether Celery runs the checks. It does so before it imports tasks, and ignores their results.

    The routes cannot be loaded then, because this would import the tasks.
    """
    return any(frame.f_globals.get("__name__") == "celery.fixups.django" for frame, _ in walk_stack(None))


def _settings(**given: Any) -> list[checks.CheckMessage]:
    from cdc_tasks.django.checks import check_settings

    return check_settings(**given)


def _routes(**given: Any) -> list[checks.CheckMessage]:
    from cdc_tasks.django.checks import check_routes

    return [] if _is_within_celery() else check_routes(**given)


def _migrations(**given: Any) -> list[checks.CheckMessage]:
    from cdc_tasks.django.checks import check_migrations

    return check_migrations(**given)
