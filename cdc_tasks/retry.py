"""What is tried again and when: the one place that decides, for every task."""

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

MAX_WAIT = 600.0  # seconds; what waits longer comes back, looks, and waits on
MAX_RETRIES = 15  # after the first: about an hour of waiting
MAX_PROCESS_CRASHES = 3  # of worker processes, by one task
MAX_WORKER_CRASHES = 10  # of whole workers, which may have died for another reason


class TryAgain(CDCError):  # noqa: N818  # the public name, which says what to do
    """Something that the task needs is away for now."""

    counts: ClassVar[bool] = True  # as one of the tries that a task has

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, after: float | None = None
    ) -> None:
        """`after`: seconds to wait, where the service that failed has said so."""
        super().__init__(message, hint=hint)
        self.after = after


class NotYetError(TryAgain):
    """Nothing has failed: it is not this task's turn. It may wait as often as it must."""

    counts = False


class BrokerBlockedError(TryAgain):
    """RabbitMQ takes no messages: its memory or disk alarm is on."""

    counts: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(
            "RabbitMQ takes no messages: its memory or disk alarm is on.",
            hint="See which: rabbitmqctl status",
        )


class UnroutableError(TryAgain):
    """RabbitMQ has no queue for a message."""


def may_retry(error: Exception, request: Context, most_tries: int | None) -> bool:
    """Tell whether a task that failed so is to be tried again; `most_tries` None: without end."""
    if not isinstance(error, TryAgain):
        return False
    return not error.counts or most_tries is None or request.retries < most_tries


def seconds_without_jitter(error: TryAgain, retries: int) -> float:
    """Return about what `seconds_to_wait` does."""
    return min(2.0**retries if error.after is None else error.after, MAX_WAIT)


def seconds_to_wait(error: TryAgain, retries: int) -> float:
    """Return what the service asked for, or 1, 2, 4, … seconds; spread, so that not all come back at once."""
    if error.after is not None:
        spread = random.uniform(0, 1) if error.counts else 0  # noqa: S311  # spread, not secrecy
        return min(error.after + spread, MAX_WAIT)
    return min(2.0**retries, MAX_WAIT) * random.uniform(0.5, 1)  # noqa: S311  # the same
