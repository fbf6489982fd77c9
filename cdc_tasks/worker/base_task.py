"""The base class of every task: retries as `cdc_tasks.retry` decides, and keeps a dead letter when it gives up."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

import celery
import structlog
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate

from cdc_tasks.broker.delays import with_countdown
from cdc_tasks.broker.queues import queue_of_key
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.retry import MAX_RETRIES, BrokerBlockedError, TryAgain, may_retry, seconds_to_wait
from cdc_tasks.worker import coroutines, poison
from cdc_tasks.worker.redacted_args import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RetryingTask"]

log = structlog.get_logger()

_PAUSE = 1.0  # seconds before a task goes back to its queue, which limits the loop


class RetryingTask(celery.Task):  # type: ignore[type-arg]  # generic in Celery's stubs only
    """Retries `TryAgain` with back-off; any other error ends the task with a dead letter."""

    max_retries = MAX_RETRIES
    default_retry_delay = 10  # seconds, after a worker has died
    Request = "cdc_tasks.worker.poison:BoundedRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with poison.count_crashes(self.request):
                result = self.run(*args, **kwargs)
                if iscoroutine(result) and not self.request.called_directly:
                    return coroutines.run(result)
                return result
        except TaskPredicate:  # a retry or a rejection that the task itself has raised
            raise
        except Exception as error:  # a task may raise anything: it is retried, or raised again
            if self.request.called_directly or self.request.is_eager:
                raise
            if isinstance(error, TryAgain) and may_retry(error, self.request, self.max_retries):
                raise self._retry_later(error) from error
            self._give_up(error)
            raise

    def _give_up(self, error: Exception) -> None:
        """Keep a dead letter; if that fails now, retry the task, so that it is not lost."""
        try:
            dead_letters.keep(dead_letters.letter_of(self.name, self.request, error))
        except CacheAwayError as away:
            raise self._retry_later(away, counts=False) from error

    def _retry_later(self, error: TryAgain, *, counts: bool = True) -> Retry | Reject | Ignore:
        request = self.request
        wait = seconds_to_wait(error, request.retries)
        headers = dict(request.headers or {})
        if error.counts:
            attempt = {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "error": dead_letters.described_error(error),
                "waits": round(wait, 1),
            }
            headers = dead_letters.with_attempt(headers, attempt)
        if not (counts and error.counts):
            request.update(retries=request.retries - 1)  # Celery adds one
        try:
            self.retry(exc=error, countdown=wait, headers=headers)
        except Retry as retry:
            return retry
        except Reject as rejected:
            if isinstance(rejected.args[0], BrokerBlockedError):
                with contextlib.suppress(CacheAwayError):
                    return self._defer(wait, headers)
            # The broker did not take the retry. Celery would drop the task; here it stays in the queue.
            log.warning("retry_not_taken", of_task=self.name, error=repr(rejected.args[0]))
            time.sleep(_PAUSE)
            return Reject("the broker did not take the retry", requeue=True)
        raise AssertionError("Task.retry raises")  # pragma: no cover

    def _defer(self, wait: float, headers: Mapping[str, Any]) -> Ignore:
        from cdc_tasks.worker.deferred_retries import defer

        request = self.request
        retry = self.signature_from_request(request, retries=request.retries + 1, headers=dict(headers))
        return defer(retry, wait=wait)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: str | None = None,
        **options: Any,
    ) -> Any:
        """Return the signature of a retry, for the queue that the task came from; Celery's follows `task_routes`."""
        info = (self.request if request is None else request).delivery_info or {}
        queue = queue or queue_of_key(self.app, info.get("routing_key"))
        return super().signature_from_request(request, args, kwargs, queue, **options)

    def apply_async(  # type: ignore[override]  # the stubs name each option
        self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send the task; Flower shows which change is in its arguments, but no row."""
        options["headers"] = with_countdown(options.get("headers"), options.get("countdown"))
        options.setdefault("argsrepr", redacted(args or ()))
        options.setdefault("kwargsrepr", redacted(kwargs or {}))
        return super().apply_async(args, kwargs, **options)
