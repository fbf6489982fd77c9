"""cdc-tasks' own tasks that `cdc_tasks.install` adds to an app, and its metrics in Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdc_tasks.worker.base_task import RetryingTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from cdc_tasks.installed import Parts

__all__ = ["add_tasks", "show_numbers"]


def add_tasks(app: Celery, parts: Parts) -> None:
    """Register them in this app, and in no other app of the process."""
    if parts.health:
        from cdc_tasks.worker import health

        _add(app, health.ANSWER, health.answer_health, bind=True)
    if parts.retries and parts.transport:
        from cdc_tasks.worker import deferred_retries

        _add(app, deferred_retries.SEND, deferred_retries.send_deferred_retries)


def _add(app: Any, name: str, function: Callable[..., Any], **options: Any) -> None:
    app.task(name=name, base=RetryingTask, shared=False, ignore_result=True, **options)(function)


def show_numbers() -> None:
    """Add our metrics to Flower's page for Prometheus."""
    from cdc_tasks.worker import metrics

    metrics.expose()
