"""The rate limit and the order of messages, over several workers."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.notify.delivery import deliver
from cdc_tasks.retry import NotYetError
from cdc_tasks.settings import worker_settings
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.social_stub import RateLimit, Status

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub


def test_a_channel_gets_no_more_than_its_rate_from_three_workers_and_in_the_order_of_commits(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    social.fail("C0CARL", Status(503))  # later messages do not overtake it
    social.always_fail("C0CARL", RateLimit(1))
    ticket = helpdesk.insert_ticket("Ticket", assigned_to_id=helpdesk.CARL)
    states = ["in progress", "closed", "open"] * 4
    environment = {**helpdesk.environment, "CDC_RATES": "slack=4:0"}
    with ExitStack() as stack:
        for name in ("one", "two", "three"):
            stack.enter_context(Worker(environment, "-n", f"{name}@%h", concurrency=1))
        began = time.monotonic()
        helpdesk.send("cdc_tasks.notify_ticket_insert", ticket)
        for state in states:
            helpdesk.send(
                "cdc_tasks.notify_ticket_update", helpdesk.update_ticket(ticket.row["id"], status=state)
            )
        wait_until(lambda: social.attempts["C0CARL"], what="the first message")
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
        wait_until(lambda: social.to("C0ANNA"), what="another user's message: no worker blocks")
        social.recover("C0CARL")
        wait_until(lambda: len(social.to("C0CARL")) == 13, timeout=40, what="all messages")

    at = [each.at for each in social.to("C0CARL")]
    assert at[-1] - began > 12 / 4 - 0.01  # each may be late, and none early
    states_sent = [
        fact for each in social.to("C0CARL")[1:] for fact in set(states) if f"→ {fact}" in each.text
    ]
    assert states_sent == states


def test_a_service_gets_no_more_than_its_rate_whatever_the_channel(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    for number in range(12):
        helpdesk.connect_slack(helpdesk.CARL, f"C0{number}")
    environment = {**helpdesk.environment, "CDC_RATES": "slack=0:4"}
    with Worker(environment, "-n", "one@%h"), Worker(environment, "-n", "two@%h"):
        began = time.monotonic()
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL))
        wait_until(lambda: len(social.posted) == 12, timeout=30, what="all messages")
    at = sorted(each.at for each in social.posted)
    assert all(
        each - began >= number / 4 for number, each in enumerate(at)
    )  # each may be late, and none early


def test_waiting_for_the_rate_limit_is_not_a_failure(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch, social: SocialStub
) -> None:
    monkeypatch.setenv("CDC_RATES", "slack=0.1:0")
    worker_settings.cache_clear()
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    mine = in_process.connect_slack(in_process.ANNA, "C0TEAM")
    other = in_process.connect_slack(in_process.MONA, "C0TEAM")
    elsewhere = in_process.connect_slack(in_process.MONA, "C0MONA")
    assert deliver(mine, "new_ticket", 1, "a") == "sent to slack"
    assert deliver(mine, "new_ticket", 1, "a") == "nothing sent: it was sent before"  # reserves no time
    with pytest.raises(NotYetError) as caught:
        deliver(other, "new_ticket", 1, "a")  # another account, the same channel
    assert 0 < (caught.value.after or 0) <= 10
    assert not caught.value.counts
    assert deliver(elsewhere, "new_ticket", 1, "a") == "sent to slack"
    wait_until(lambda: _is_sent(other), timeout=15, what="the reserved time")
    totals = in_process.broker.cache.hgetall("cdc:totals")
    assert isinstance(totals, dict)
    assert int(totals[b"delivered slack"]) == 3
    assert int(totals[b"rate_waits slack"]) >= 1


def test_behind_a_message_that_was_late_the_next_one_waits_once(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait is a retry: a burst costs as many of them as it has messages."""
    monkeypatch.setenv("CDC_RATES", "slack=0.1:0")
    worker_settings.cache_clear()
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    account = in_process.connect_slack(in_process.ANNA, "C0ANNA")
    assert deliver(account, "new_ticket", 1, "a") == "sent to slack"
    cache = in_process.broker.cache
    (last_sent,) = cache.scan_iter("cdc:pace:slack:*:used")
    cache.incrby(last_sent, 5_000)  # as if it had been sent five seconds after its reserved time
    with pytest.raises(NotYetError) as caught:
        deliver(account, "new_ticket", 1, "b")
    assert 10 < (caught.value.after or 0) <= 15


def test_after_a_refused_message_the_next_one_is_sent_at_once(
    in_process: HelpDesk, social: SocialStub
) -> None:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    account = in_process.connect_slack(in_process.ANNA, "C0ANNA")
    social.fail("C0ANNA", Status(404))
    with pytest.raises(Exception, match="404"):
        deliver(account, "new_ticket", 1, "a", position="0/1:0")
    assert deliver(account, "new_ticket", 1, "b", position="0/2:0") == "sent to slack"


def _is_sent(account: int, change_id: str = "a", position: str | None = None) -> bool:
    try:
        return deliver(account, "new_ticket", 1, change_id, position=position) == "sent to slack"
    except NotYetError:
        return False
