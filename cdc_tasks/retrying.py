"""What is tried again and when: the one place that decides, for every task."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import celery
from celery.exceptions import Reject, Retry
from celery.utils.saferepr import saferepr

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LONGEST_WAIT", "RetryingTask", "TryAgain", "described", "seconds_to_wait"]

LONGEST_WAIT = (
    600.0  # seconds; below the broker's visibility timeout, past which a waiting task would run twice
)


class TryAgain(CDCError):
    """Something that the task needs is away for now."""

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, after: float | None = None
    ) -> None:
        """`after`: seconds to wait, where the service that failed has said so."""
        super().__init__(message, hint=hint)
        self.after = after


class RetryingTask(celery.Task):  # type: ignore[type-arg]  # generic in Celery's stubs only
    """The base of every task: `TryAgain` is retried with back-off, any other error ends the task."""

    max_retries = 15  # about an hour of waiting
    default_retry_delay = 10  # after a worker that died

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(*args, **kwargs)
        except TryAgain as error:
            if self.request.called_directly:
                raise
            raise self._later(error) from error

    def _later(self, error: TryAgain) -> Retry | Reject:
        try:
            self.retry(exc=error, countdown=seconds_to_wait(error, self.request.retries))
        except Retry as retry:
            return retry
        except Reject:
            # The broker did not take the retry. Celery would drop the task; ours stays in the queue.
            return Reject("the broker did not take the retry", requeue=True)
        raise AssertionError("Task.retry raises")  # pragma: no cover

    def apply_async(  # type: ignore[override]  # the stubs name each option
        self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send the task; what Flower shows of its arguments names a change, and not what is in the row."""
        options.setdefault("argsrepr", described(args or ()))
        options.setdefault("kwargsrepr", described(kwargs or {}))
        return super().apply_async(args, kwargs, **options)


def seconds_to_wait(error: TryAgain, retries: int) -> float:
    """Return what the service asked for, or 1, 2, 4, … seconds; spread, so that not all come back at once."""
    if error.after is not None:
        return min(error.after + random.uniform(0, 1), LONGEST_WAIT)  # noqa: S311  # spread, not secrecy
    return min(2.0**retries, LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311  # the same


def described(arguments: Sequence[Any] | Mapping[str, Any]) -> str:
    """Return a `repr` that has no row data in it: of a change table, event and id, of any other dict its keys."""
    if isinstance(arguments, dict):
        return saferepr({name: _shown(value) for name, value in arguments.items()})
    return saferepr(tuple(_shown(value) for value in arguments))


def _shown(value: Any) -> Any:
    if isinstance(value, list) and value and all(_is_change(each) for each in value):
        return f"<{len(value)} changes of {value[0]['schema']}.{value[0]['table']}, first {value[0]['id']}>"
    if _is_change(value):
        return f"<{value['event']} of {value['schema']}.{value['table']}, {value['id']}>"
    if isinstance(value, dict):
        return f"<{', '.join(map(str, value))}>"
    return value


def _is_change(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"id", "schema", "table", "event", "before", "after"}
