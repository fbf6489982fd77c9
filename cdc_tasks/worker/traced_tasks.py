"""Spans of tasks, with Celery's own instrumentation; each process of a worker has its own provider."""

from __future__ import annotations

from typing import Any

from celery import signals

from cdc_tasks import tracing
from cdc_tasks.errors import CDCError
from cdc_tasks.extras import needs_extras

__all__ = ["connect"]


def connect() -> None:
    """Trace tasks where they run: in each process of a prefork pool, else in the worker itself."""
    signals.celeryd_init.connect(_refuse)
    signals.worker_process_init.connect(_begin)
    signals.worker_process_shutdown.connect(_end)
    signals.worker_init.connect(_begin_without_processes)
    signals.worker_shutdown.connect(_end)


def _refuse(**_: Any) -> None:
    """Before a worker starts: report missing packages, or an error in CDC_OTEL."""
    try:
        tracing.is_on()
    except CDCError as error:
        raise SystemExit(f"error: {error}") from None


def _begin_without_processes(sender: Any, **_: Any) -> None:
    if not sender.pool_cls.__module__.endswith("prefork"):
        _begin()


def _begin(**_: Any) -> None:
    if not tracing.is_on():
        return
    with needs_extras("otel"):
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
    tracing.start("cdc-tasks-worker")
    instrumentor: Any = CeleryInstrumentor()  # type: ignore[no-untyped-call]  # it has no types
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument()


def _end(**_: Any) -> None:
    if tracing.is_on():
        tracing.stop()
