"""`enqueue`: a task that runs if and only if the transaction commits."""

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
    """Enqueue a task in the transaction that is open on `connection`; return the task's id.

    The task is sent when the transaction commits. It is never sent if the transaction rolls back, even to a savepoint.
    Tasks are sent in the order of the commits, each at its place among the changes of its transaction. On Redis a task
    is sent exactly once. The listener's routes must accept it: `router.accept("shop.*")`.

    `connection` is a SQLAlchemy Session or Connection, a Django connection, or a DB-API connection (psycopg 2 and 3,
    PyMySQL, mysqlclient). With an AsyncSession: `await session.run_sync(cdc_tasks.enqueue, task, …)`.

    `task` is a name, or the Celery task: then its signature is checked. `args` and `kwargs` are its arguments, as JSON
    values. `task_id` is the task's id, by default a new UUID. `key` puts it into a message group:
    `("orders", order.id)`, as `key_headers` takes it, with `on_failure="hold"` if you want it. `options` are Celery's:
    queue, exchange, routing_key, priority, countdown, eta, expires, headers, shadow, ignore_result, delivery_mode,
    time_limit, soft_time_limit. `countdown` and a number of seconds as `expires` count from when the listener sends
    the task.

    Raises EnqueuedTaskError for invalid arguments and options, KeyValueError for an invalid key, and TypeError if the
    task does not take the arguments. Raises MarkError if the connection has no open transaction, or if its database
    does not support such messages.
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
    """Return the message for the log. Raises EnqueuedTaskError if it is too large, or not representable in JSON."""
    try:
        content: str = dumps({ENQUEUE: fields})
    except (TypeError, ValueError) as error:
        raise EnqueuedTaskError(
            f"The arguments of {fields['task']} cannot be written as JSON: {error}.",
            hint="Pass ids, texts and numbers, and read the rest in the task.",
            code="not_json",
        ) from error
    if len(content) > LARGEST:
        raise EnqueuedTaskError(
            f"The task {fields['task']} would be a message of {len(content)} bytes; the limit is {LARGEST}.",
            hint="Store the data, and pass its id.",
            code="enqueued_too_large",
        )
    return content


def _fields(
    args: Sequence[Any], kwargs: Mapping[str, Any], key: Sequence[Any] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the message's fields other than the task and its id, without empty ones."""
    said = {name: value for name, value in _plain(options) if value is not None}
    fields = {
        "args": list(args),
        "kwargs": dict(kwargs),
        "key": key if key is None or isinstance(key, str) else list(key),
        "options": said,
    }
    return {name: value for name, value in fields.items() if value}


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options as JSON values: times as ISO 8601, a time span in seconds."""
    for name, value in options.items():
        if isinstance(value, datetime):
            yield name, (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
        elif isinstance(value, timedelta):
            yield name, value.total_seconds()
        else:
            yield name, getattr(value, "name", value) if name in {"queue", "exchange"} else value
