"""What happens when a row of `tickets` changes: the assignee hears of it, and the assignee's managers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import structlog

from cdc_tasks import db
from cdc_tasks.celery import app
from cdc_tasks.changes import RowChange
from cdc_tasks.helpdesk.models import Ticket
from cdc_tasks.helpdesk.users import get_manager_ids
from cdc_tasks.notify.delivery import notify_users
from cdc_tasks.notify.messages import Fact, Message, Occasion, composes
from cdc_tasks.notify.models import User
from cdc_tasks.notify.rate_limit import Turn, in_turn
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Collection

    from celery import Task
    from sqlalchemy.orm import Session

__all__ = [
    "TicketData",
    "changes_worth_telling",
    "notify_ticket_insert",
    "notify_ticket_update",
    "ticket_data",
]

log = structlog.get_logger()

_WORTH_TELLING = {"assigned_to_id": "Assigned to", "status": "Status", "priority": "Priority"}
_HEADINGS = {
    "new_ticket": "New Ticket",
    "manager_new_ticket": "Manager: New Ticket",
    "ticket_updated": "Ticket Updated",
    "manager_ticket_updated": "Manager: Ticket Updated",
}


class TicketData(TypedDict):
    """A ticket as people are told of it."""

    id: int
    ticket_id: str  # TKT-00123
    title: str
    assigned_to: str | None  # names
    created_by: str | None
    priority: str | None
    status: str | None
    created_at: str | None  # ISO 8601
    link: NotRequired[str]  # where TICKET_BASE_URL is set


@app.task(name="cdc_tasks.notify_ticket_insert", bind=True)
def notify_ticket_insert(self: Task[Any, Any], change: dict[str, Any]) -> str:
    """Tell the assignee of a new ticket, and the assignee's managers."""
    insert = RowChange.from_message(change)
    with in_turn(_turn(insert), self):
        return _notify(insert, "new_ticket", None)


@app.task(name="cdc_tasks.notify_ticket_update", bind=True)
def notify_ticket_update(self: Task[Any, Any], change: dict[str, Any]) -> str:
    """Tell the assignee, and the assignee's managers, what has changed from what to what."""
    update = RowChange.from_message(change)
    changed = changes_worth_telling(update)
    if changed == {}:
        return _nothing_sent(update.row["id"], "nothing worth telling has changed")
    with in_turn(_turn(update), self):
        return _notify(update, "ticket_updated", changed)


def changes_worth_telling(update: RowChange) -> dict[str, tuple[Any, Any]] | None:
    """Return column: (before, after) of what has changed, or None where the source did not send the old row.

    The old row comes whole with REPLICA IDENTITY FULL on PostgreSQL and binlog_row_image=FULL on MySQL.
    """
    differs = {column: update.changed(column) for column in _WORTH_TELLING if column in update.row}
    before, after = update.before or {}, update.row
    found = {column: (before[column], after[column]) for column, differs_ in differs.items() if differs_}
    return None if not found and None in differs.values() else found


def ticket_data(ticket: Ticket) -> TicketData:
    """Say of a ticket what people want to know."""
    data = TicketData(
        id=ticket.id,
        ticket_id=f"TKT-{ticket.id:05}",
        title=ticket.title,
        assigned_to=ticket.assigned_to.name if ticket.assigned_to else None,
        created_by=ticket.created_by.name if ticket.created_by else None,
        priority=ticket.priority,
        status=ticket.status,
        created_at=_in_utc(ticket.created_at).isoformat() if ticket.created_at else None,
    )
    if base := worker_settings().ticket_base_url:
        data["link"] = f"{base.rstrip('/')}/{ticket.id}"
    return data


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC)  # MySQL's have no zone


def _turn(change: RowChange) -> Turn:
    return Turn(lane=f"ticket:{change.row['id']}", position=change.position, delivery_id=change.id)


def _notify(change: RowChange, kind: str, changed: dict[str, tuple[Any, Any]] | None) -> str:
    ticket_id = change.row["id"]
    with db.session() as session:
        ticket = session.get(Ticket, ticket_id)
        if ticket is None:
            return _nothing_sent(ticket_id, "the ticket is gone")
        if ticket.assigned_to_id is None:
            return _nothing_sent(ticket_id, "the ticket has no assignee")
        occasion = Occasion(
            kind=kind, subject_id=ticket_id, change_id=change.id, changed=changed, position=change.position
        )
        for_managers = replace(occasion, kind=f"manager_{kind}")
        count = notify_users(session, [ticket.assigned_to_id], occasion)
        count += notify_users(session, get_manager_ids(ticket.assigned_to_id, session), for_managers)
    log.info("messages_queued", kind=kind, ticket_id=ticket_id, messages=count)
    return f"{count} messages queued"


def _nothing_sent(ticket_id: int, reason: str) -> str:
    log.info("nothing_sent", reason=reason, ticket_id=ticket_id)
    return f"nothing sent: {reason}"


@composes(*_HEADINGS)
def _ticket_message(session: Session, occasion: Occasion) -> Message | None:
    ticket = session.get(Ticket, occasion.subject_id)
    if ticket is None:
        return None
    data = ticket_data(ticket)
    changed = occasion.changed or {}
    told = tuple(
        Fact(
            label,
            f"{_named(session, column, changed[column][0])} → {_named(session, column, changed[column][1])}",
        )
        for column, label in _WORTH_TELLING.items()
        if column in changed
    )
    return Message(
        heading=_HEADINGS[occasion.kind],
        title=f"{data['ticket_id']} {data['title']}",
        facts=told + _current_facts(data, leave_out=changed.keys()),
        link=data.get("link"),
    )


def _current_facts(data: TicketData, *, leave_out: Collection[str]) -> tuple[Fact, ...]:
    facts = {
        "assigned_to_id": Fact("Assigned to", data["assigned_to"] or "nobody"),
        "status": Fact("Status", data["status"] or "none"),
        "priority": Fact("Priority", data["priority"] or "none"),
        "created_by_id": Fact("Created by", data["created_by"] or "unknown"),
        "created_at": Fact("Created", _readable(data["created_at"])),
    }
    return tuple(fact for column, fact in facts.items() if column not in leave_out)


def _readable(moment: str | None) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M %Z}".strip() if moment else "unknown"


def _named(session: Session, column: str, value: Any) -> str:
    if column != "assigned_to_id":
        return "none" if value is None else str(value)
    if value is None:
        return "nobody"
    user = session.get(User, value)
    return user.name if user else "somebody who is gone"
