"""`context`: each change of the transaction knows who made it."""

from __future__ import annotations

import json
from typing import Any

from cdc_tasks.outbox.transaction import check_transaction, emit
from cdc_tasks.routing.contexts import CONTEXT, check_context

__all__ = ["context"]


def context(connection: Any, /, **values: Any) -> None:
    """Let each later change of the transaction that is open on `connection` carry these values.

    A route sees them as `change.context`, and the tasks have them in the header `cdc_context`, also those that
    `cdc_tasks.enqueue` writes into the transaction. Called again, it adds values and replaces those of the same names,
    from there on. What a savepoint's rollback takes back goes with it.

    `connection` is what `cdc_tasks.enqueue` takes. With an AsyncSession:
    `await session.run_sync(cdc_tasks.context, user_id=7)`.

    `values` are JSON scalars: text, integers of up to 64 bits, finite numbers, bools and None. All of them have up to
    2,000 bytes as JSON. They go through the database's log and the broker, so pass ids and not what they stand for.

    In plain SQL, on PostgreSQL, within the transaction:

        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"context": {"user_id": 7}}'),
               pg_logical_emit_message(true, 'cdc_tasks_spacer', '');   -- for savepoints: see docs/context.md

    On MySQL and MariaDB it is a row of `cdc_tasks_marks`, which is deleted at once:

        SET @mark = UUID();
        INSERT INTO cdc_tasks_marks (id, says) VALUES (@mark, '{"context": {"user_id": 7}}');
        DELETE FROM cdc_tasks_marks WHERE id = @mark;

    Raises ContextError for values that make no context, and MarkError as `cdc_tasks.enqueue` does.
    """
    check_context(values)
    check_transaction(connection)
    emit(connection, json.dumps({CONTEXT: values}), of_changes=True)
