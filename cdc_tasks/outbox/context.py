"""`context`: each change of a transaction carries who made it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cdc_tasks import tracing
from cdc_tasks.outbox.transaction import check_transaction, emit
from cdc_tasks.routing.contexts import CONTEXT, LARGEST, check_context

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["context", "emit_trace"]


def context(connection: Any, /, **values: Any) -> None:
    """Attach these values to each later change of the transaction that is open on `connection`.

    A route sees them as `change.context`, and the tasks have them in the header `cdc_context`, including those that
    `cdc_tasks.enqueue` writes into the transaction. Another call adds values, and replaces those of the same names, for
    the changes after it. A rollback to a savepoint also undoes the calls since that savepoint.

    `connection` is what `cdc_tasks.enqueue` takes. With an AsyncSession:
    `await session.run_sync(cdc_tasks.context, user_id=7)`.

    `values` are JSON scalars: text, integers of up to 64 bits, finite numbers, bools and None; together up to 2,000
    bytes as JSON. They pass through the database's log and the broker, so pass ids, not personal data.

    In plain SQL, on PostgreSQL, at the beginning of the transaction:

        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"context": {"user_id": 7}}');

    Later in the transaction, and in savepoints, a second message has to follow it: see docs/context.md.

    On MySQL and MariaDB it is a row of `cdc_tasks_marks`, which is deleted at once:

        SET @mark = UUID();
        INSERT INTO cdc_tasks_marks (id, says) VALUES (@mark, '{"context": {"user_id": 7}}');
        DELETE FROM cdc_tasks_marks WHERE id = @mark;

    If tracing is on (CDC_OTEL), the current span is added as `traceparent`, and no other value is needed.

    Raises ContextError for invalid values, and MarkError as `cdc_tasks.enqueue` does.
    """
    said = _with_trace(values)
    check_context(said)
    check_transaction(connection)
    emit(connection, json.dumps({CONTEXT: said}))


def _with_trace(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with those that name the current span, if tracing is on: as many as fit."""
    said = {**tracing.trace_fields(), **values}
    for name in ("baggage", "tracestate"):
        if name in said and name not in values and len(json.dumps(said)) > LARGEST:
            del said[name]
    return said


def emit_trace(connection: Any) -> None:
    """Attach the current span to the transaction, if tracing is on and there is one."""
    if tracing.is_on() and (said := _with_trace({})):
        emit(connection, json.dumps({CONTEXT: said}))
