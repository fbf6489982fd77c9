"""One message to one account, if its service, its account or its worker fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.notify.delivery import MaybeSentError, deliver
from cdc_tasks.notify.sealed_secrets import SealedSecretError
from cdc_tasks.notify.send_errors import AnswerLostError, RateLimitedError, RefusedError, UnavailableError
from cdc_tasks.settings import worker_settings
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.social_stub import Drop, Error, RateLimit, Slow, Status

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub


@pytest.fixture
def account_id(in_process: HelpDesk) -> int:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    return in_process.connect_slack(in_process.ANNA, "C0ANNA")


def test_a_failing_account_neither_blocks_nor_repeats_another_ones_message(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0GONE")  # never recovers
    helpdesk.connect_teams(helpdesk.ANNA, "anna")
    helpdesk.connect_slack(helpdesk.MONA, "C0MONA")  # recovers
    social.fail("C0MONA", Status(503), RateLimit(1), Drop(posted=False))

    helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))

    wait_until(lambda: social.to("C0MONA"), timeout=30, what="the message that was tried again")
    wait_until(lambda: "channel_not_found" in worker.log, what="the refusal in the log")
    assert [(each.to, each.heading) for each in social.posted] == [
        ("anna", "New Ticket"),
        ("C0MONA", "Manager: New Ticket"),
    ]
    assert social.attempts == {"C0GONE": 1, "anna": 1, "C0MONA": 4}


def test_the_wait_is_as_long_as_the_service_says_and_blocks_no_worker(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    social.fail("C0ANNA", RateLimit(10))
    with Worker(helpdesk.environment, concurrency=1):
        before = time.monotonic()
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
        wait_until(lambda: social.attempts["C0ANNA"], what="the first attempt")
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL))
        wait_until(lambda: len(social.posted) == 2, timeout=20, what="both messages")

    assert [each.to for each in social.posted] == ["C0CARL", "C0ANNA"]
    assert social.posted[1].at - before >= 10


def test_a_change_that_is_replayed_sends_nothing_twice(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    account_id = helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    groups = MessageGroups(helpdesk.broker.client)
    insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL)
    helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
    wait_until(lambda: worker.events("message_sent"), what="the message")
    helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
    wait_until(lambda: worker.events("nothing_sent"), what="one that finds it sent")

    # At once: the broker may drop a copy of a message that is still queued, so one or both find it sent.
    replays = [helpdesk.send("cdc_tasks.notify_ticket_insert", insert) for _ in range(2)]
    wait_until(
        lambda: all(f"{each}] succeeded in" in worker.log for each in replays), what="two more replays"
    )
    wait_until(lambda: groups.of_key(f"account:{account_id}") is None, what="their messages to be done")
    wait_until(lambda: len(worker.events("nothing_sent")) >= 2, what="another that finds it sent")
    assert social.attempts["C0CARL"] == len(social.posted) == 1
    assert {line["reason"] for line in worker.events("nothing_sent")} == {"it was sent before"}


def test_two_workers_with_the_same_message_send_it_once(helpdesk: HelpDesk, social: SocialStub) -> None:
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    social.fail("C0CARL", Slow(4))  # the other worker comes while the first waits for the answer
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    with (
        Worker(environment, "-n", "one@%h", concurrency=1) as one,
        Worker(environment, "-n", "two@%h", concurrency=1) as two,
    ):
        insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL)
        helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
        wait_until(lambda: social.posted, what="the service to have the message")
        helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
        wait_until(lambda: "Another worker is sending" in one.log + two.log, what="the other to come")
        wait_until(
            lambda: one.events("nothing_sent") + two.events("nothing_sent"), timeout=20, what="it to give way"
        )
        assert len(one.events("message_sent") + two.events("message_sent")) == 1
    assert social.attempts["C0CARL"] == len(social.posted) == 1


def test_a_message_costs_two_round_trips_to_redis(in_process: HelpDesk, account_id: int) -> None:
    assert deliver(account_id, "new_ticket", 1, "first") == "sent to slack"  # Redis knows the scripts now
    in_process.broker.cache.config_resetstat()
    assert deliver(account_id, "new_ticket", 1, "second") == "sent to slack"
    scripts = in_process.broker.cache.info("commandstats")["cmdstat_evalsha"]
    assert scripts["calls"] == 2


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RateLimit(7), RateLimitedError),
        (Status(503), UnavailableError),
        (Error("service_unavailable"), UnavailableError),
        (Error("ratelimited"), RateLimitedError),
        (Error("channel_not_found"), RefusedError),
        (Error("account_inactive"), RefusedError),
        (Status(404), RefusedError),
        (Status(500), AnswerLostError),
        (Error("internal_error"), AnswerLostError),
        (Drop(posted=True), AnswerLostError),
    ],
)
def test_slacks_errors_are_distinguished(
    in_process: HelpDesk, account_id: int, fault: Error, expected: type[Exception]
) -> None:
    in_process.social.fail("C0ANNA", fault)
    with pytest.raises(expected) as caught:
        deliver(account_id, "new_ticket", 1, "change")
    assert type(caught.value) is expected
    assert "xoxb" not in str(caught.value)
    if isinstance(fault, RateLimit) and isinstance(caught.value, RateLimitedError):
        assert caught.value.after == 7


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RateLimit(7), RateLimitedError),
        (Status(503), UnavailableError),
        (Status(400), RefusedError),
        (Status(502), AnswerLostError),
        (Drop(posted=True), AnswerLostError),
    ],
)
def test_teams_errors_are_distinguished_and_keep_the_url_secret(
    in_process: HelpDesk, fault: Status, expected: type[Exception]
) -> None:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    account = in_process.connect_teams(in_process.ANNA, "anna")
    in_process.social.fail("anna", fault)
    with pytest.raises(expected) as caught:
        deliver(account, "new_ticket", 1, "change")
    assert type(caught.value) is expected
    assert "the-secret-part" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("service", ["slack", "teams"])
def test_a_service_that_is_not_reached_has_not_taken_the_message(in_process: HelpDesk, service: str) -> None:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    connect = in_process.connect_slack if service == "slack" else in_process.connect_teams
    account = connect(in_process.ANNA, "C0ANNA")
    in_process.social.close()
    with pytest.raises(UnavailableError):
        deliver(account, "new_ticket", 1, "change")


@pytest.mark.parametrize("service", ["slack", "teams"])
def test_a_service_that_is_too_slow_may_have_taken_the_message(
    in_process: HelpDesk, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"cdc_tasks.notify.services.{service}.TIMEOUT", 0.3)
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    connect = in_process.connect_slack if service == "slack" else in_process.connect_teams
    account = connect(in_process.ANNA, "C0ANNA")
    in_process.social.fail("C0ANNA", Slow(3))
    with pytest.raises(AnswerLostError):
        deliver(account, "new_ticket", 1, "change")
    wait_until(lambda: len(in_process.social.posted) == 1, what="the message")


def test_a_revoked_token_is_refused_with_a_hint(in_process: HelpDesk, account_id: int) -> None:
    in_process.social.revoked.add("xoxb-good")
    with pytest.raises(RefusedError, match=r"token_revoked\.\n  connect the account again"):
        deliver(account_id, "new_ticket", 1, "change")


def test_after_a_lost_answer_the_message_is_sent_again_by_default(
    in_process: HelpDesk, account_id: int
) -> None:
    in_process.social.fail("C0ANNA", Drop(posted=True))
    with pytest.raises(AnswerLostError):
        deliver(account_id, "new_ticket", 1, "change")
    assert deliver(account_id, "new_ticket", 1, "change") == "sent to slack"
    assert len(in_process.social.posted) == 2


def test_after_a_lost_answer_the_message_is_not_sent_again_with_give_up(
    in_process: HelpDesk, account_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_LOST_ANSWER", "give-up")
    worker_settings.cache_clear()
    in_process.social.fail("C0ANNA", Drop(posted=True))
    with pytest.raises(AnswerLostError):
        deliver(account_id, "new_ticket", 1, "change")
    for _ in range(2):
        with pytest.raises(MaybeSentError, match="CDC_LOST_ANSWER"):
            deliver(account_id, "new_ticket", 1, "change")
    assert len(in_process.social.posted) == 1


def test_a_secret_that_no_key_decrypts_is_an_error_with_a_hint(in_process: HelpDesk, account_id: int) -> None:
    in_process.database.execute("UPDATE connected_accounts SET secret = 'not ours'")
    with pytest.raises(SealedSecretError, match="rotate-key"):
        deliver(account_id, "new_ticket", 1, "change")
