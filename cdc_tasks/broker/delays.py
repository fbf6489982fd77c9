"""Waits of less than a second, which Celery refuses where RabbitMQ's quorum queues keep the wait: rounded up."""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import Any

from celery import Celery
from celery.utils.time import maybe_make_aware

__all__ = ["DelayingCelery"]


class DelayingCelery(Celery):
    """Celery's app; whatever sends a task with a wait comes through here: tasks, signatures, retries, beat."""

    def send_task(  # the stubs name each option
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Send a task by name; `countdown` and `eta` mean the next whole second where RabbitMQ keeps the wait."""
        if (countdown or eta) and self._has_quorum_queues():
            countdown, eta = _whole_seconds(countdown, eta, self.now())
        return super().send_task(name, args, kwargs, countdown, eta, *more, **options)

    def _has_quorum_queues(self) -> bool:
        queues = self.amqp.queues.values()
        return any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in queues)


def _whole_seconds(
    countdown: float | None, eta: datetime | str | None, now: datetime
) -> tuple[float | None, datetime | str | None]:
    """Return the wait as a countdown, as Celery counts it: `eta` goes first; what is due is due at once."""
    if eta:
        due = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        countdown = (maybe_make_aware(due) - maybe_make_aware(now)).total_seconds()
    if countdown is None or countdown <= 0:
        return None, eta
    return ceil(countdown), None
