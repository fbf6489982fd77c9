"""A base class for Celery tasks: tasks that a view enqueues inside a transaction go through the database's log."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.result import AsyncResult
from django.db import transaction

from cdc_tasks.django.settings import database_alias
from cdc_tasks.outbox.enqueue import enqueue
from cdc_tasks.routing.enqueued import OPTIONS

__all__ = ["TransactionalTask"]

_PASSED_ON = frozenset({"args", "kwargs", "task_id", "key", *OPTIONS})


class TransactionalTask(Task):  # type: ignore[type-arg]  # it is generic in the stubs, but not in Celery
    """A Celery task that is sent when Django's transaction commits.

    `@shared_task(base=TransactionalTask)`, or for all tasks of an app
    `app = Celery("shop", task_cls="cdc_tasks.django.task:TransactionalTask")`.

    Inside `atomic()` of the database that the listener reads, `delay`, `apply_async` and `delay_on_commit` write the
    task into the transaction (`cdc_tasks.enqueue`). Everywhere else they send it at once, as usual. So do retries,
    canvases (chain, group, chord), calls with `link`, and all calls with `task_always_eager`.
    """

    abstract = True

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Enqueue the task in the open transaction, or send it at once; return its AsyncResult."""
        if more or not self._goes_with_the_transaction(options):
            return super().apply_async(args, kwargs, task_id, *more, **options)
        connection = transaction.get_connection(database_alias())
        sent = {name: value for name, value in options.items() if value is not None}
        given = enqueue(connection, self, *(args or ()), kwargs=kwargs, task_id=task_id, **sent)
        return AsyncResult(given, app=self.app)

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> Any:
        """Enqueue the task in the open transaction; without one, send it at once."""
        return self.apply_async(args, kwargs)

    def apply_async_on_commit(self, *args: Any, **options: Any) -> Any:
        """Do the same as `apply_async`, which already waits for the commit."""
        return self.apply_async(*args, **options)

    def _goes_with_the_transaction(self, options: dict[str, Any]) -> bool:
        if self.app.conf.task_always_eager or any(
            value is not None and name not in _PASSED_ON for name, value in options.items()
        ):
            return False  # e.g. "retries" of a retry, "chain" and "group_id" of a canvas
        return bool(transaction.get_connection(database_alias()).in_atomic_block)
