"""The app that the commands are about: the one of `-A`, or cdc-tasks' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc_tasks.apps import AppNotFoundError, find_app
from cdc_tasks.installed import current_app, is_foreign, parts_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["choose", "chosen"]


def choose(reference: str) -> None:
    """Use the app that `-A` names. Raises AppNotFoundError, also if cdc-tasks is not installed in the app."""
    app = find_app(reference)
    if parts_of(app) is None:
        raise AppNotFoundError(
            f"cdc-tasks is not installed in the app {reference}.",
            hint="Below the line that makes the app: cdc_tasks.install(app)",
            code="not_installed",
        )


def chosen() -> Celery:
    """Return the app, and make it Celery's current one."""
    if is_foreign(current_app()):
        return current_app()
    from cdc_tasks.celery import app

    return app
