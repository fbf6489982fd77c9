"""The text of a ticket's messages: the heading, the old and new values, and the current ones."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

from cdc_tasks.helpdesk.models import Ticket
from cdc_tasks.notify.message import Fact, Message, Notification, composes
from cdc_tasks.notify.models import User
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

__all__ = ["REPORTED_COLUMNS", "TicketData", "ticket_data"]

# column: its label. A change of any other column sends no message.
REPORTED_COLUMNS: Final = {"assigned_to_id": "Assigned to", "status": "Status", "priority": "Priority"}
_HEADINGS: Final = {
    "new_ticket": "New Ticket",
    "manager_new_ticket": "Manager: New Ticket",
    "ticket_updated": "Ticket Updated",
    "manager_ticket_updated": "Manager: Ticket Updated",
}


class TicketData(TypedDict):
    """A ticket as a message shows it."""

    id: int
    ticket_id: str  # TKT-00123
    title: str
    assigned_to: str | None  # names
    created_by: str | None
    priority: str | None
    status: str | None
    created_at: str | None  # ISO 8601
    link: NotRequired[str]  # if TICKET_BASE_URL is set


@composes(*_HEADINGS)
def _ticket_message(session: Session, notification: Notification) -> Message | None:
    ticket = session.get(Ticket, notification.subject_id)
    if ticket is None:
        return None
    data = ticket_data(ticket)
    changed = notification.changed or {}
    differences = tuple(
        Fact(
            label,
            f"{_named(session, column, changed[column][0])} → {_named(session, column, changed[column][1])}",
        )
        for column, label in REPORTED_COLUMNS.items()
        if column in changed
    )
    return Message(
        heading=_HEADINGS[notification.kind],
        title=f"{data['ticket_id']} {data['title']}",
        facts=differences + _current_facts(data, leave_out=changed.keys()),
        link=data.get("link"),
    )


def _current_facts(data: TicketData, *, leave_out: Collection[str]) -> tuple[Fact, ...]:
    facts = {
        "assigned_to_id": Fact("Assigned to", data["assigned_to"] or "no one"),
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
        return "no one"
    user = session.get(User, value)
    return user.name if user else "a deleted user"


def ticket_data(ticket: Ticket) -> TicketData:
    """Return the ticket's data for a message."""
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
    return moment if moment.tzinfo is None else moment.astimezone(UTC)  # MySQL's datetimes have no zone
