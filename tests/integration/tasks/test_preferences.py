"""A user's preferences: which messages, when, and on which accounts."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.helpdesk.schema import sql
from harness.waiting import wait_until
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from harness.worker import Worker
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub

_CHECKOUT = Path(__file__).resolve().parents[3]


def test_all_accounts_get_the_wanted_messages_and_no_others(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    helpdesk.connect_slack(helpdesk.ANNA, "C0HOME")
    helpdesk.connect_teams(helpdesk.ANNA, "anna")
    helpdesk.connect_slack(helpdesk.MONA, "C0MONA")
    helpdesk.connect_slack(helpdesk.VERA, "C0VERA")
    assert "copies for managers: no" in _set(helpdesk, "mona@example.com", "--no-manager-copies")
    assert "muted: ticket_updated" in _set(helpdesk, "anna@example.com", "--mute", "ticket_updated")

    ticket = helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA)
    helpdesk.send("cdc_tasks.notify_ticket_insert", ticket)
    wait_until(lambda: len(social.posted) == 4, timeout=20, what="the news")
    helpdesk.send("cdc_tasks.notify_ticket_update", helpdesk.update_ticket(ticket.row["id"], status="closed"))
    wait_until(lambda: len(social.posted) == 5, what="the update")

    assert {each.to for each in social.posted[:4]} == {"C0ANNA", "C0HOME", "anna", "C0VERA"}
    assert social.posted[4].to == "C0VERA"
    reasons = {(each.get("user_id"), each["reason"]) for each in worker.events("nothing_sent")}
    assert (helpdesk.ANNA, "the user has muted this kind") in reasons
    assert (helpdesk.MONA, "the user wants no copies for managers") in reasons


def test_messages_of_the_quiet_hours_are_sent_when_they_end(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    account_id = helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    groups = MessageGroups(helpdesk.broker.client)
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(
        seconds=25
    )  # enough for the steps below on a busy machine
    begin = end - timedelta(hours=8)
    _set(helpdesk, "carl@example.com", "--quiet", f"{begin:%H:%M:%S}-{end:%H:%M:%S}")
    for title in ("First", "Second"):
        insert = helpdesk.insert_ticket(title, assigned_to_id=helpdesk.CARL)
        helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
    wait_until(lambda: "quiet hours" in worker.log, what="the first to wait for their end")
    wait_until(
        lambda: groups.waiting(f"account:{account_id}", most=9), what="the second to wait for the first"
    )
    assert social.attempts["C0CARL"] == 0
    wait_until(lambda: len(social.posted) == 2, timeout=30, what="both messages")
    assert datetime.now(UTC) >= end - timedelta(seconds=1)
    assert ["First" in each.text for each in social.posted] == [True, False]


def test_preferences_are_set_by_a_command_and_bad_values_are_refused(helpdesk: HelpDesk) -> None:
    helpdesk.database.execute(sql("postgresql"))  # a second time: it changes nothing that exists
    shown = _set(helpdesk, "anna@example.com", "--quiet", "22:00-07:00", "--time-zone", "Europe/Berlin")
    assert "quiet hours: 22:00 to 07:00 Europe/Berlin" in shown
    assert "quiet hours: none" in _set(helpdesk, "anna@example.com", "--quiet", "none", "--mute", "welcome")
    assert "muted: nothing" in _set(helpdesk, "anna@example.com", "--unmute", "welcome")
    assert "new_ticket" in _set(helpdesk, "anna@example.com", "--mute", "lies", status=1)
    assert "22:00-07:00" in _set(helpdesk, "anna@example.com", "--quiet", "at night", status=1)
    assert "Nowhere" in _set(helpdesk, "anna@example.com", "--time-zone", "Nowhere/Land", status=1)
    assert "No user" in _set(helpdesk, "nobody@example.com", status=1)


def _set(helpdesk: HelpDesk, *arguments: str, status: int = 0) -> str:
    result = WARM.run(
        [sys.executable, "-m", "cdc_tasks", "preferences", *arguments],
        env={**os.environ, **helpdesk.environment},
        cwd=_CHECKOUT,
    )
    assert result.returncode == status, result.stderr
    return result.stderr
