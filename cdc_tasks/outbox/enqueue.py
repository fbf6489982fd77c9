"""`enqueue`: a task that runs if, and only if, the transaction commits."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from kombu.utils.json import dumps

from cdc_tasks.outbox.context import emit_trace
from cdc_tasks.outbox.transaction import check_transaction, emit
from cdc_tasks.routing.enqueued import ENQUEUE, EnqueuedTaskError, check_fields, observers
from cdc_tasks.routing.tasks import task_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["LARGEST", "enqueue", "message_of"]

LARGEST: Final = 8_000_000  # bytes of a message: it passes through the log, the listener and the broker


def enqueue(
    connection: Any,
    /,
    task: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    task_id: str | None = None,
    key: Sequence[Any] | None = None,
    **options: Any,
) -> str:
    """Let the transaction that is open on `connection` enqueue a task; return the task's id.

    The task is sent when the transaction commits, and never if it rolls back, also to a savepoint. It comes in the
    order of the commits, at its place among the changes of the transaction. On Redis it is sent exactly once. The
    listener's routes have to accept it: `router.accept("shop.*")`.

    `connection` is a Session or Connection of SQLAlchemy's, a connection of Django's, or a DB-API connection (psycopg 2
    and 3, PyMySQL, mysqlclient). With an AsyncSession: `await session.run_sync(cdc_tasks.enqueue, task, …)`.

    `task` is a name, or Celery's task: then its signature is checked. `args` and `kwargs` are its arguments, as JSON
    has them. `task_id` is the task's id, by default a new UUID. `key` puts it into a message group:
    `("orders", order.id)`, as `key_headers` takes it, and `on_failure="hold"` may go with it. `options` are Celery's:
    queue, exchange, routing_key, priority, countdown, eta, expires, headers, shadow, ignore_result, delivery_mode,
    time_limit, soft_time_limit. `countdown` and a number of seconds as `expires` count from when the listener sends
    the task.

    Raises EnqueuedTaskError for arguments and options that make no message, KeyValueError, TypeError if the task does
    not take the arguments, and MarkError where the connection has no transaction, or its database no such messages.
    """
    known = task_of(task)
    if known.parameters is not None:
        known.parameters.bind(*args, **(kwargs or {}))  # TypeError, as `apply_async` raises it
    given_id = task_id or str(uuid4())
    fields = _fields(args, kwargs or {}, key, {**known.options, **options})
    content = message_of({"task": known.name, "id": given_id, **fields})
    said = json.loads(content)[ENQUEUE]
    check_fields(said)
    check_transaction(connection)
    emit_trace(connection)
    emit(connection, content)
    for observe in observers:
        observe(said)
    return given_id


def message_of(fields: Mapping[str, Any]) -> str:
    """Return the message, as the log gets it; raises EnqueuedTaskError if it is too large, or has what JSON has not."""
    try:
        content: str = dumps({ENQUEUE: fields})
    except (TypeError, ValueError) as error:
        raise EnqueuedTaskError(
            f"The arguments of {fields['task']} are not what JSON has: {error}.",
            hint="Pass ids, texts and numbers, and read the rest in the task.",
            code="not_json",
        ) from error
    if len(content) > LARGEST:
        raise EnqueuedTaskError(
            f"The task {fields['task']} would be a message of {len(content)} bytes, and {LARGEST} is the limit.",
            hint="Store the data, and pass its id.",
            code="enqueued_too_large",
        )
    return content


def _fields(
    args: Sequence[Any], kwargs: Mapping[str, Any], key: Sequence[Any] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the message says beside the task and its id, without what is empty."""
    said = {name: value for name, value in _plain(options) if value is not None}
    fields = {
        "args": list(args),
        "kwargs": dict(kwargs),
        "key": key if key is None or isinstance(key, str) else list(key),
        "options": said,
    }
    return {name: value for name, value in fields.items() if value}


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options as JSON has them: times as ISO 8601, a time span in seconds."""
    for name, value in options.items():
        if isinstance(value, datetime):
            yield name, (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
        elif isinstance(value, timedelta):
            yield name, value.total_seconds()
        else:
            yield name, getattr(value, "name", value) if name in {"queue", "exchange"} else value
