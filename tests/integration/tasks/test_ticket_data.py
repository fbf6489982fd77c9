"""A ticket as its messages show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc_tasks import db
from cdc_tasks.helpdesk.models import Ticket
from cdc_tasks.helpdesk.ticket_messages import ticket_data
from cdc_tasks.notify.message import Fact, Notification, compose
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    import pytest

    from tests.support.helpdesk import HelpDesk


def test_ticket_data_has_names_where_the_row_has_ids(in_process: HelpDesk) -> None:
    in_process.insert_ticket(
        "Fix bug", id=123, assigned_to_id=in_process.ANNA, created_at="2026-11-22 11:00+01"
    )
    with db.session() as session:
        assert ticket_data(session.get_one(Ticket, 123)) == {
            "id": 123,
            "ticket_id": "TKT-00123",
            "title": "Fix bug",
            "assigned_to": "Anna",
            "created_by": "Carl",
            "priority": "Normal",
            "status": "open",
            "created_at": "2026-11-22T10:00:00+00:00",
            "link": "https://helpdesk.example.com/tickets/123",
        }


def test_without_a_base_url_there_is_no_link_and_without_people_no_names(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TICKET_BASE_URL")
    worker_settings.cache_clear()
    in_process.insert_ticket(created_by_id=None)
    with db.session() as session:
        data = ticket_data(session.get_one(Ticket, 1))
    assert "link" not in data
    assert data["assigned_to"] is data["created_by"] is None


def test_a_message_shows_what_has_changed_first_and_then_the_rest(in_process: HelpDesk) -> None:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA, created_at="2026-11-22 11:00+01")
    changed = {"status": ("closed", "open"), "assigned_to_id": (None, in_process.ANNA)}
    notification = Notification(kind="ticket_updated", subject_id=1, change_id="change", changed=changed)
    with db.session() as session:
        message = compose(session, notification)
    assert message is not None
    assert message.facts == (
        Fact("Assigned to", "no one → Anna"),
        Fact("Status", "closed → open"),
        Fact("Priority", "Normal"),
        Fact("Created by", "Carl"),
        Fact("Created", "2026-11-22 10:00 UTC"),
    )
