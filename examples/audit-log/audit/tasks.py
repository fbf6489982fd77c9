"""What happens when a table that is audited changes."""

import os
from typing import Any

import psycopg
from celery import shared_task
from celery.utils.log import get_task_logger
from psycopg.types.json import Jsonb

from cdc_tasks import EventType, RowChange, on_change

log = get_task_logger(__name__)

_INSERT = """
INSERT INTO audit_log (change_id, committed_at, table_name, event, row_id, before, after, context)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (change_id) DO NOTHING
"""


# columns: no other value leaves the listener, so no password is in the broker or in the audit log.
@on_change("customers", EventType.ALL, columns=["id", "name", "credit"], batch=200)
@shared_task(autoretry_for=[psycopg.OperationalError], retry_backoff=True, max_retries=None)
def write_audit_log(messages: list[dict[str, Any]]) -> None:
    """Append the changes. A task that runs twice, because its worker died in the middle, changes nothing."""
    rows = [_row(RowChange.from_message(each)) for each in messages]
    url = os.environ.get("AUDIT_DATABASE_URL", "postgresql://localhost/audit")
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.executemany(_INSERT, rows)
    log.info("%s changes written", len(rows))


def _row(change: RowChange) -> tuple[Any, ...]:
    before, after, context = (
        each and Jsonb(dict(each)) for each in (change.before, change.after, change.context)
    )
    return (
        change.id,
        change.committed_at,
        change.table,
        change.event,
        change.row.get("id"),
        before,
        after,
        context,
    )
