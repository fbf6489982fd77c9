"""The tasks for changes of `tickets`: they notify the assignee, and the assignee's managers.

Their routes have a key (`listener/routes.py`): the tasks of one ticket run one at a time, in the order of its changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import structlog
from celery import shared_task

from cdc_tasks import db
from cdc_tasks.changes import RowChange
from cdc_tasks.helpdesk.models import Ticket
from cdc_tasks.helpdesk.ticket_messages import REPORTED_COLUMNS
from cdc_tasks.helpdesk.users import get_manager_ids
from cdc_tasks.notify.delivery import notify_each
from cdc_tasks.notify.message import Notification
from cdc_tasks.words import counted
from cdc_tasks.worker.base_task import RetryingTask

__all__ = ["notify_ticket_insert", "notify_ticket_update", "reported_changes"]

log = structlog.get_logger()


@shared_task(name="cdc_tasks.notify_ticket_insert", base=RetryingTask)
def notify_ticket_insert(change: dict[str, Any]) -> str:
    """Notify the assignee of a new ticket, and the assignee's managers."""
    return _notify(RowChange.from_message(change), "new_ticket", None)


@shared_task(name="cdc_tasks.notify_ticket_update", base=RetryingTask)
def notify_ticket_update(change: dict[str, Any]) -> str:
    """Notify the assignee, and the assignee's managers, with the old and the new values."""
    update = RowChange.from_message(change)
    changed = reported_changes(update)
    if changed == {}:
        return _nothing_sent(update.row["id"], "no reported column has changed")
    return _notify(update, "ticket_updated", changed)


def reported_changes(update: RowChange) -> dict[str, tuple[Any, Any]] | None:
    """Return {column: (before, after)} for the reported columns that differ; None if the source sent no old row.

    The source sends the whole old row with REPLICA IDENTITY FULL on PostgreSQL and binlog_row_image=FULL on MySQL.
    """
    differs = {column: update.changed(column) for column in REPORTED_COLUMNS if column in update.row}
    before, after = update.before or {}, update.row
    found = {column: (before[column], after[column]) for column, differs_ in differs.items() if differs_}
    return None if not found and None in differs.values() else found


def _notify(change: RowChange, kind: str, changed: dict[str, tuple[Any, Any]] | None) -> str:
    ticket_id = change.row["id"]
    with db.reading() as session:
        ticket = session.get(Ticket, ticket_id)
        if ticket is None:
            return _nothing_sent(ticket_id, "the ticket is gone")
        if ticket.assigned_to_id is None:
            return _nothing_sent(ticket_id, "the ticket has no assignee")
        notification = Notification(
            kind=kind, subject_id=ticket_id, change_id=change.id, changed=changed, position=change.position
        )
        for_managers = replace(notification, kind=f"manager_{kind}")
        managers = get_manager_ids(ticket.assigned_to_id, session)
        recipients = [
            (ticket.assigned_to_id, notification),
            *((manager, for_managers) for manager in managers),
        ]
        count = notify_each(session, recipients)
    log.info("messages_queued", kind=kind, ticket_id=ticket_id, messages=count)
    return f"{counted(count, 'message')} queued"


def _nothing_sent(ticket_id: int, reason: str) -> str:
    log.info("nothing_sent", reason=reason, ticket_id=ticket_id)
    return f"nothing sent: {reason}"
