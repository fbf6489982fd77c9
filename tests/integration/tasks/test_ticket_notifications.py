"""A ticket changes, and a real worker notifies the users concerned."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.changes import EventType
from cdc_tasks.helpdesk.tickets import notify_ticket_insert
from harness.waiting import wait_until
from tests.support.helpdesk import change
from tests.support.social_stub import Error, Status

if TYPE_CHECKING:
    from harness.worker import Worker
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub


@pytest.mark.versions
def test_a_new_ticket_reaches_the_assignee_and_every_manager_on_all_their_accounts(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    helpdesk.connect_teams(helpdesk.ANNA, "anna")
    helpdesk.connect_slack(helpdesk.MONA, "U0MONA")
    helpdesk.connect_teams(helpdesk.VERA, "vera")

    helpdesk.send(
        "cdc_tasks.notify_ticket_insert",
        helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA, priority="High"),
    )

    wait_until(lambda: len(social.posted) == 4, what="four messages")
    assert sorted((each.service, each.to, each.heading) for each in social.posted) == [
        ("slack", "C0ANNA", "New Ticket"),
        ("slack", "U0MONA", "Manager: New Ticket"),
        ("teams", "anna", "New Ticket"),
        ("teams", "vera", "Manager: New Ticket"),
    ]
    for message in social.posted:
        for words in (
            "TKT-00001",
            "Printer on fire",
            "Anna",
            "Carl",
            "High",
            "open",
            "helpdesk.example.com/tickets/1",
        ):
            assert words in message.text


def test_the_message_about_an_update_shows_the_old_and_the_new_values(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    helpdesk.connect_slack(helpdesk.MONA, "C0MONA")
    helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL)

    helpdesk.send(
        "cdc_tasks.notify_ticket_update",
        helpdesk.update_ticket(1, status="in progress", priority="Urgent", assigned_to_id=helpdesk.ANNA),
    )

    wait_until(lambda: len(social.posted) == 2, what="two messages")
    assert [each.heading for each in social.to("C0ANNA")] == ["Ticket Updated"]
    assert [each.heading for each in social.to("C0MONA")] == ["Manager: Ticket Updated"]
    for message in social.posted:
        for words in ("Carl → Anna", "open → in progress", "Normal → Urgent"):
            assert words in message.text


def test_without_the_old_row_the_message_shows_the_current_values(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA)

    helpdesk.send(
        "cdc_tasks.notify_ticket_update", replace(helpdesk.update_ticket(1, status="closed"), before=None)
    )

    wait_until(lambda: social.posted, what="a message")
    assert "closed" in social.posted[0].text
    assert "→" not in social.posted[0].text


def test_a_cycle_of_managers_does_no_harm(helpdesk: HelpDesk, social: SocialStub, worker: Worker) -> None:
    helpdesk.database.execute("UPDATE users SET manager_id = %s WHERE id = %s", helpdesk.ANNA, helpdesk.VERA)
    for user_id in (helpdesk.ANNA, helpdesk.MONA, helpdesk.VERA):
        helpdesk.connect_slack(user_id, f"C0{user_id}")

    helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))

    wait_until(lambda: len(worker.events("message_sent")) == 3, what="three messages")
    assert sorted(each.to for each in social.posted) == ["C01", "C02", "C03"]
    assert [each.heading for each in social.to("C03")] == ["New Ticket"]


def test_a_new_user_is_welcomed(helpdesk: HelpDesk, social: SocialStub, worker: Worker) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, None)

    helpdesk.send("cdc_tasks.welcome_user", change(EventType.INSERT, "users", after={"id": helpdesk.ANNA}))

    wait_until(lambda: social.posted, what="a message")
    assert social.posted[0].to == "U0ANNA"  # found by e-mail
    assert social.posted[0].heading == "Welcome"
    assert "Anna" in social.posted[0].text


def test_no_name_no_title_and_no_token_is_in_the_workers_log(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA", token="xoxb-very-secret")
    helpdesk.connect_teams(helpdesk.ANNA, "anna")
    social.fail("anna", Status(503))
    social.fail("C0ANNA", Error("invalid_auth"))
    helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
    wait_until(lambda: worker.events("message_sent"), timeout=20, what="the message that was tried again")
    for secret in ("xoxb", "the-secret-part", "Printer", "Anna", "anna@example.com"):
        assert secret not in worker.log


def test_queued_messages_hold_ids_and_show_no_row(in_process: HelpDesk) -> None:
    in_process.connect_slack(in_process.ANNA, "C0ANNA")
    insert = in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    notify_ticket_insert(insert.to_message())
    notify_ticket_insert.delay(insert.to_message())

    [retried, delivery] = [
        json.loads(each) for each in in_process.broker.client.lrange("cdc_notifications", 0, -1)
    ]
    assert json.loads(b64decode(delivery["body"]))[1] == {
        "account_id": 1,
        "kind": "new_ticket",
        "subject_id": 1,
        "change_id": insert.id,
        "changed": None,
        "position": insert.position,
    }
    assert retried["headers"]["argsrepr"] == f"('<insert of public.tickets, {insert.id}>',)"
