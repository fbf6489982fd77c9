"""Poison messages: tasks that were redelivered because their worker died, and that may have killed it.

A redelivered message may have killed its worker, or the worker died for another reason. So a crash count is increased
when such a task begins, and deleted when the task ends in any way. A task that has begun too often without ending
becomes a dead letter.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs leave it out
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request
from celery.worker.state import task_ready

from cdc_tasks import cache
from cdc_tasks.broker.message_groups import hold_key, note_retry
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import NO_PARTS, parts_of
from cdc_tasks.retry import MAX_PROCESS_CRASHES, MAX_WORKER_CRASHES
from cdc_tasks.versions import celery_is
from cdc_tasks.worker.redacted_args import holds_change, redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from billiard.einfo import ExceptionInfo
    from celery import Celery

__all__ = ["KILLS", "BoundedRequest", "KilledWorkersError", "count_crashes"]

log = structlog.get_logger()

KILLS = "cdc_kills"  # the message header with the number of worker processes that died with this task
_KEPT = 24 * 3600  # seconds


class KilledWorkersError(CDCError):
    """Each worker that ran this task died: out of memory, or a crash in a C extension? It is not retried."""


@contextmanager
def count_crashes(request: Context, app: Celery) -> Iterator[None]:
    """Count the runs of a redelivered task that have not ended; raise KilledWorkersError or CacheAwayError.

    It counts nothing in an app without dead letters.
    """
    if not _keeps_letters(app):
        yield
        return
    if int((request.headers or {}).get(KILLS, 0)) >= MAX_PROCESS_CRASHES:
        raise KilledWorkersError
    if request.called_directly or not (request.delivery_info or {}).get("redelivered"):
        yield
        return
    key = f"cdc:suspect:{request.id}"
    with cache.errors_translated():
        runs = int(cache.client().incr(key))
        cache.client().expire(key, _KEPT)
    try:
        if runs > MAX_WORKER_CRASHES:
            raise KilledWorkersError
        yield
    finally:
        _forget_crashes(key)


def _forget_crashes(key: str) -> None:
    try:
        with cache.errors_translated():
            cache.client().delete(key)
    except cache.CacheAwayError as away:  # the key expires a day later
        log.warning("crash_count_not_cleared", key=key, error=away.message)


# --- A task whose worker process died -------------------------------------------------------------------


class BoundedRequest(Request):
    """Celery's request; counts the worker processes that died with its task, and shows no row."""

    def info(self, safe: bool = False) -> Any:  # noqa: FBT001, FBT002  # Celery's signature
        """Return what `celery inspect` and Flower show of a running or waiting task: never a row."""
        arguments, keywords = self._args, self._kwargs  # type: ignore[attr-defined]  # the stubs name public things only
        shown: Any = super().info(safe)
        if getattr(self.task, "hides_mappings", False) or holds_change(arguments) or holds_change(keywords):
            return {**shown, "args": redacted(arguments or ()), "kwargs": redacted(keywords or {})}
        return shown

    def on_failure(self, exc_info: ExceptionInfo, *args: Any, **kwargs: Any) -> Any:
        """Handle a task's error; a task that gives up may hold its key.

        A task whose process died is retried, as in Celery 5.7; earlier versions requeue its message without a limit.
        """
        error = _original(exc_info.exception)
        if not isinstance(error, Retry | Ignore | Reject):
            hold_key(self.message)
        elif not isinstance(error, Reject):  # a retry, or one that waits for RabbitMQ's alarm to end
            note_retry(self.message)
        is_ours = not celery_is(5, 7) and self._is_retried_if_lost()
        if is_ours and isinstance(error, WorkerLostError) and self._retry_worker_lost(error, exc_info):
            task_ready(self)
            return None
        return super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001  # Celery's signature
        """Handle a time limit; a killed task may hold its key, and its dead letter has the whole message."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        hold_key(self.message)
        _killed[self.id] = self._context  # type: ignore[attr-defined]  # the same
        try:
            super().on_timeout(soft, timeout)
        finally:
            _killed.pop(self.id, None)

    def _retry_worker_lost(self, exc: Exception, exc_info: ExceptionInfo) -> bool:
        if not _keeps_letters(self.app):
            return self._send_again(exc, exc_info)
        context: Context = self._context  # type: ignore[attr-defined]  # the same
        kills = int((context.headers or {}).get(KILLS, 0)) + 1
        if kills < MAX_PROCESS_CRASHES or not _kept(self.task_name, context, exc, exc_info):
            attempt = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "error": repr(exc)}
            context.headers = dead_letters.with_attempt({**(context.headers or {}), KILLS: kills}, attempt)
            return self._send_again(exc, exc_info)
        self.acknowledge()
        self.send_event("task-failed", exception=repr(exc), traceback=str(exc_info.traceback))
        return True

    def _is_retried_if_lost(self) -> bool:
        task, retries = self.task, self._context.retries  # type: ignore[attr-defined]  # the same
        is_wanted = task.acks_late and task.app.conf.get("task_retry_on_worker_lost")
        return bool(is_wanted) and (task.max_retries is None or retries < task.max_retries)

    def _send_again(self, exc: Exception, exc_info: ExceptionInfo) -> bool:
        if celery_is(5, 7):
            note_retry(self.message)  # Celery acknowledges it in this call
            is_sent = bool(super()._retry_worker_lost(exc, exc_info))  # type: ignore[misc]  # the same
            note_retry(self.message, is_sent=is_sent)
            return is_sent
        task, context = self.task, self._context  # type: ignore[attr-defined]  # the same
        try:
            task.signature_from_request(
                context, countdown=task.default_retry_delay, retries=context.retries + 1
            ).apply_async()
        except Exception as error:  # noqa: BLE001  # whatever the broker's driver raises: the message goes back
            log.warning("retry_not_taken", of_task=self.name, error=repr(error))
            return False
        note_retry(self.message)
        self.acknowledge()
        self.send_event("task-retried", exception=repr(exc), traceback=str(exc_info.traceback))
        return True


def _original(error: BaseException | None) -> BaseException | None:
    """Return the exception of a task, which comes wrapped from another process."""
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


_killed: dict[str, Context] = {}  # task id: a task that Celery is killing at its hard time limit


def _keeps_letters(app: Any) -> bool:
    return (parts_of(app) or NO_PARTS).dead_letters


def _kept(name: str, context: Context, error: Exception, trace: Any) -> bool:
    try:
        dead_letters.keep(dead_letters.letter_of(name, context, error, trace=str(trace)))
    except CacheAwayError as away:
        log.exception("dead_letter_lost", of_task=name, dead_letter=context.id, error=away.message)
        return False
    return True


@signals.task_failure.connect
def _keep_what_was_killed(sender: Any, exception: Exception, task_id: str, **more: Any) -> None:
    """Keep a dead letter of a task that Celery killed at its hard time limit, or does not retry.

    The task's own process could not keep one.
    """
    if isinstance(exception, TimeLimitExceeded | WorkerLostError) and _keeps_letters(sender.app):
        failed = _killed.get(task_id) or Context(id=task_id, args=more["args"], kwargs=more["kwargs"])
        context = sender.request if sender.request.id else failed
        _kept(sender.name, context, exception, more["einfo"])
