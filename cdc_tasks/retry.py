"""Which errors are retried, when and how often: for every task."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from celery.app.task import Context

__all__ = [
    "MAX_PROCESS_CRASHES",
    "MAX_RETRIES",
    "MAX_WAIT",
    "BrokerBlockedError",
    "NotYetError",
    "TryAgain",
    "UnroutableError",
    "may_retry",
    "seconds_to_wait",
    "seconds_without_jitter",
]

MAX_WAIT = 600.0  # seconds; a task that has to wait longer is retried then, and waits again
MAX_RETRIES = 15  # after the first try: about an hour of waiting
MAX_PROCESS_CRASHES = 3  # of worker processes, by one task
MAX_WORKER_CRASHES = 10  # of whole workers, which may have died for another reason


class TryAgain(CDCError):  # noqa: N818  # the public name, which says what to do
    """Something that the task needs is currently not available."""

    counts: ClassVar[bool] = True  # whether it counts towards MAX_RETRIES

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, after: float | None = None
    ) -> None:
        """`after`: the seconds to wait, as requested by the failed service."""
        super().__init__(message, hint=hint)
        self.after = after


class NotYetError(TryAgain):
    """Nothing has failed, but the task has to wait. Such retries are not limited."""

    counts = False


class BrokerBlockedError(TryAgain):
    """RabbitMQ accepts no messages: its memory or disk alarm is on."""

    counts: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(
            "RabbitMQ accepts no messages: its memory or disk alarm is on.",
            hint="To see which one: rabbitmqctl status",
        )


class UnroutableError(TryAgain):
    """RabbitMQ has no queue for a message."""


def may_retry(error: Exception, request: Context, max_retries: int | None) -> bool:
    """Return whether to retry a task after this error; `max_retries` None: without a limit."""
    if not isinstance(error, TryAgain):
        return False
    return not error.counts or max_retries is None or request.retries < max_retries


def seconds_without_jitter(error: TryAgain, retries: int) -> float:
    """Return the same as `seconds_to_wait`, but without jitter."""
    return min(2.0**retries if error.after is None else error.after, MAX_WAIT)


def seconds_to_wait(error: TryAgain, retries: int) -> float:
    """Return the time that the service requested, or 1, 2, 4, … seconds, with jitter so that retries spread out."""
    if error.after is not None:
        jitter = random.uniform(0, 1) if error.counts else 0  # noqa: S311  # no secret
        return min(error.after + jitter, MAX_WAIT)
    return min(2.0**retries, MAX_WAIT) * random.uniform(0.5, 1)  # noqa: S311  # the same
