"""Additions to each task: retries by the rules of `cdc_tasks.retry`, and a dead letter when the task gives up.

`cdc_tasks.install` adds this to each task of an app, whatever its base class is: `RetryingRegistry` puts `Retrying`
before the bases of the task's class.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from functools import cache
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final

import celery
import structlog
from celery.app.registry import TaskRegistry
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

from cdc_tasks.broker.delays import with_countdown
from cdc_tasks.broker.queues import queue_of_key
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.environment import shown_context
from cdc_tasks.installed import NO_PARTS, parts_of
from cdc_tasks.retry import MAX_RETRIES, BrokerBlockedError, TryAgain, may_retry, seconds_to_wait
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import KEY_HEADER, REPLACED_HEADER
from cdc_tasks.worker import coroutines, poison
from cdc_tasks.worker.redacted_args import holds_change, redacted
from cdc_tasks.worker.retry_counts import count_retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Retrying", "RetryingRegistry", "RetryingTask", "max_retries_of"]

log = structlog.get_logger()

_PAUSE = 1.0  # seconds before a task goes back to its queue, to slow down the loop
_CELERYS: Final = celery.Task


@contextlib.contextmanager
def _context_of(task: Any) -> Iterator[None]:
    """Add the context of the change that fired the task to log lines, and the task to the context of its writes."""
    request, parts = task.request, parts_of(task.app) or NO_PARTS
    shown = shown_context((request.headers or {}).get(CONTEXT_HEADER))
    with contextlib.ExitStack() as stack:
        if shown:
            stack.enter_context(structlog.contextvars.bound_contextvars(**shown))
        if parts.context and not request.called_directly:
            from cdc_tasks.outbox.current import acting

            stack.enter_context(acting(lambda: {"task": task.name, "task_id": request.id}))
        yield


class Retrying:
    """A mixin, before Celery's task among a class's bases.

    Retries `TryAgain` with back-off. Any other error ends the task with a dead letter.
    """

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _context_of(self):
            return self._run_or_retry(*args, **kwargs)

    def _run_or_retry(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with poison.count_crashes(self.request, self.app):
                result = self._run_it(*args, **kwargs)
                if iscoroutine(result) and not self.request.called_directly:
                    return coroutines.run(result)
                return result
        except TaskPredicate:  # a retry or a rejection that the task itself raised
            raise
        except (
            Exception
        ) as error:  # a task may raise anything: the task is retried, or the error raised again
            if self.request.called_directly or self.request.is_eager:
                raise
            parts = parts_of(self.app) or NO_PARTS
            if (
                parts.retries
                and isinstance(error, TryAgain)
                and may_retry(error, self.request, max_retries_of(self))
            ):
                raise self._retry_later(error) from error
            if parts.dead_letters:
                self._give_up(error)
            raise

    def _run_it(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the task as Celery would: with the `__call__` of its own base class, if there is one."""
        theirs = super().__call__  # type: ignore[misc]  # Celery's task's
        if theirs.__func__ is _CELERYS.__call__:
            return self.run(*args, **kwargs)
        return theirs(*args, **kwargs)

    def _give_up(self: Any, error: Exception) -> None:
        """Keep a dead letter; if that fails, retry the task, so that it is not lost."""
        try:
            dead_letters.keep(dead_letters.letter_of(self.name, self.request, error))
        except CacheAwayError as away:
            raise self._retry_later(away, counts=False) from error

    def _retry_later(self: Any, error: TryAgain, *, counts: bool = True) -> Retry | Reject | Ignore:
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
        count_retry(self.name)  # before it is sent: another process may start it before this one's event
        try:
            self.retry(exc=error, countdown=wait, headers=headers, max_retries=max_retries_of(self))
        except Retry as retry:
            return retry
        except Reject as rejected:
            if isinstance(rejected.args[0], BrokerBlockedError):
                with contextlib.suppress(CacheAwayError):
                    return self._defer(wait, headers)  # type: ignore[no-any-return]  # `self` is Any
            # The broker did not accept the retry. Celery would drop the task; here it stays in the queue.
            log.warning("retry_not_taken", of_task=self.name, error=repr(rejected.args[0]))
            time.sleep(_PAUSE)
            return Reject("the broker did not take the retry", requeue=True)
        raise AssertionError("Task.retry raises")  # pragma: no cover

    def _defer(self: Any, wait: float, headers: Mapping[str, Any]) -> Ignore:
        from cdc_tasks.worker.deferred_retries import defer

        request = self.request
        retry = self.signature_from_request(request, retries=request.retries + 1, headers=dict(headers))
        return defer(retry, wait=wait)

    def signature_from_request(
        self: Any,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: str | None = None,
        **options: Any,
    ) -> Any:
        """Return the signature of a retry for the queue that the task came from; Celery's would use `task_routes`."""
        current = self.request if request is None else request
        info = current.delivery_info or {}
        queue = queue or queue_of_key(self.app, info.get("routing_key"), exchange=info.get("exchange"))
        retry = super().signature_from_request(request, args, kwargs, queue, **options)  # type: ignore[misc]
        _name_what_it_replaces(retry, current)
        return retry

    def apply_async(
        self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send the task; of a change in its arguments, Flower shows no row."""
        if options.get("headers") or options.get("countdown"):
            options["headers"] = with_countdown(options.get("headers"), options.get("countdown"))
        if holds_change(args) or holds_change(kwargs):
            options.setdefault("argsrepr", redacted(args or ()))
            options.setdefault("kwargsrepr", redacted(kwargs or {}))
        return super().apply_async(args, kwargs, **options)  # type: ignore[misc]


def _name_what_it_replaces(retry: Any, request: Any) -> None:
    """Name, in a retry with a key, the message that it replaces."""
    headers, tag = retry.options.get("headers"), (request.properties or {}).get("delivery_tag")
    if headers and KEY_HEADER in headers and tag is not None:
        retry.options["headers"] = {**headers, REPLACED_HEADER: str(tag)}


class RetryingTask(Retrying, celery.Task):  # type: ignore[type-arg]  # generic in Celery's stubs only
    """The base class of cdc-tasks' own tasks, and of the tasks of its own app."""

    max_retries = MAX_RETRIES
    default_retry_delay = 10  # seconds, after a worker has died
    Request = "cdc_tasks.worker.poison:BoundedRequest"
    hides_mappings = True  # in Flower and `celery inspect`: they may contain rows

    def apply_async(  # type: ignore[override]  # the stubs name each option
        self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send the task; Flower shows no row, and no values of other mappings."""
        options.setdefault("argsrepr", redacted(args or ()))
        options.setdefault("kwargsrepr", redacted(kwargs or {}))
        return super().apply_async(args, kwargs, **options)


def max_retries_of(task: Any) -> int | None:
    """Return how often a task is retried after `TryAgain`: its own `max_retries`, else MAX_RETRIES."""
    says_so = any("max_retries" in vars(each) for each in type(task).__mro__ if each is not _CELERYS)
    own: int | None = task.max_retries
    return own if says_so else MAX_RETRIES


# --- How the mixin is added to each task ----------------------------------------------------------------


class RetryingRegistry(TaskRegistry):
    """An app's tasks; each becomes `Retrying` when it is registered."""

    def __setitem__(self, name: str, task: Any) -> None:
        make_retrying(task)
        super().__setitem__(name, task)


def make_retrying(task: Any) -> None:
    """Put `Retrying` before the bases of a task's class, unless it is among them."""
    kind = type(task)
    if not issubclass(kind, Retrying):
        task.__class__ = _retrying(kind)


def _retrying(kind: Any) -> Any:
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "Request": _request_of(kind.Request)}
    return type(kind.__name__, (Retrying, kind), names)


@cache
def _request_of(given: Any) -> Any:
    """Return the class of a task's requests in the worker: ours, before the task's own if it has one."""
    theirs = symbol_by_name(given)
    if issubclass(theirs, poison.BoundedRequest):
        return theirs
    if theirs is Request:
        return poison.BoundedRequest
    return type(theirs.__name__, (poison.BoundedRequest, theirs), {"__module__": theirs.__module__})
