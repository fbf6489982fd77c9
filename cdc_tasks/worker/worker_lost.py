"""A task whose worker process dies under it: tried again a few times, then kept as a dead letter.

This runs in the worker's main process, which outlives the ones that tasks run in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.worker.request import Request

from cdc_tasks.cache import CacheAway
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.retry import MOST_KILLS
from cdc_tasks.worker.base_task import described
from cdc_tasks.worker.poison import KILLS

if TYPE_CHECKING:
    from billiard.einfo import ExceptionInfo

__all__ = ["BoundedRequest"]

log = structlog.get_logger()


class BoundedRequest(Request):
    """Celery's request, which counts how many worker processes its task has killed, and shows no row."""

    def info(self, safe: bool = False) -> Any:  # noqa: FBT001, FBT002  # Celery's signature
        """Return what `celery inspect` and Flower show of a task that runs or waits: no row, whatever they ask for."""
        arguments, keywords = self._args, self._kwargs  # type: ignore[attr-defined]  # the stubs name public things only
        return {**super().info(safe), "args": described(arguments or ()), "kwargs": described(keywords or {})}

    def _retry_worker_lost(self, exc: Exception, exc_info: ExceptionInfo) -> bool:
        context: Context = self._context  # type: ignore[attr-defined]  # the stubs name public things only
        kills = int((context.headers or {}).get(KILLS, 0)) + 1
        if kills < MOST_KILLS or not _kept(self.task_name, context, exc, exc_info):
            attempt = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "error": repr(exc)}
            context.headers = dead_letters.with_attempt({**(context.headers or {}), KILLS: kills}, attempt)
            return bool(super()._retry_worker_lost(exc, exc_info))  # type: ignore[misc]  # the same
        self.acknowledge()
        self.send_event("task-failed", exception=repr(exc), traceback=str(exc_info.traceback))
        return True


def _kept(name: str, context: Context, error: Exception, trace: Any) -> bool:
    try:
        dead_letters.keep(dead_letters.letter_of(name, context, error, trace=str(trace)))
    except CacheAway as away:
        log.exception("dead letter lost", of_task=name, dead_letter=context.id, error=away.message)
        return False
    return True


@signals.task_failure.connect
def _keep_what_was_killed(sender: Any, exception: Exception, task_id: str, **more: Any) -> None:
    """Celery killed it at its hard time limit, or will not try it again: its own process could keep nothing."""
    if isinstance(exception, TimeLimitExceeded | WorkerLostError):
        failed = Context(id=task_id, args=more["args"], kwargs=more["kwargs"])
        context = sender.request if sender.request.id else failed
        _kept(sender.name, context, exception, more["einfo"])
